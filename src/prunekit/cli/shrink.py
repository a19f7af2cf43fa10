"""`prunekit shrink`: one network, physically smaller, proven and saved."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn

import prunekit.cli.options as options
from prunekit.cli.networks import TRACED, Network, folder_bytes, only_batch, open_network
from prunekit.cli.options import as_options, only_results, print_json
from prunekit.errors import InputError, ModelError, shown
from prunekit.graph import (
    ShrinkResult,
    prune_groups,
    shrink_branches,
    shrink_columns,
    shrink_dead,
)
from prunekit.masks import Masks
from prunekit.measure import count, human_bytes, human_count, human_seconds, latency, plain_table
from prunekit.parts.granularity import Block, FilterShape, Unit
from prunekit.saving import check_free, save_pretrained


def shrink(
    model: options.Model,
    out: Annotated[Path, typer.Option(help="Folder: new, empty, or with an earlier network.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the units of every group to take out, the least first.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="Only these kinds of groups, such as filters,heads.")
    ] = None,
    ignore: options.Ignore = None,
    residual: options.Residual = False,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of so many units.")] = 1,
    form: Annotated[
        str,
        typer.Option(help="modules: units that the code needs stay. graph: they go, as does the class."),
    ] = "modules",
    data: options.Data = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = 10,
    tokens: options.Tokens = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples per pass; else two.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a network physically smaller, prove it, and save it.

    Without --sparsity: what `prunekit prune` removed goes, blocks, filter
    shapes or dead units. With it: units go by the L1 norm of their weights, the least first.

    Example: prunekit shrink resnet20 --input-shape 3,32,32 --sparsity 0.5 --out small
    """
    kept_kinds = None if kinds is None else tuple(kind.strip() for kind in kinds.split(","))
    if sparsity is None:
        if kept_kinds is not None or ignore or residual or round_to > 1 or form != "modules":
            raise InputError(
                "--kinds, --ignore, --residual, --round-to and --form say what --sparsity takes: add it"
            )
    elif not 0 < sparsity < 1:
        raise InputError(f"--sparsity {sparsity:g}: write a share between 0 and 1, such as 0.4 for 40 %")
    if form not in ("modules", "graph"):
        raise InputError(f"--form {shown(form)}: write modules or graph")
    check_free(out)
    with only_results():
        network = open_network(
            model,
            data=data,
            data_dir=data_dir,
            weights=weights,
            input_shape=input_shape,
            outputs=outputs,
        )
        batch = network.batch(batch, TRACED)
        inputs = network.examples(batch, tokens)
        masks = Masks({}) if network.saved is None else network.saved.masks()
        dense = copy.deepcopy(network.model)
        if sparsity is None:
            saved = network.saved
            if saved is not None and saved.prunes(Block):
                done = shrink_branches(network.model, inputs, masks)
            elif saved is not None and saved.prunes(FilterShape):
                done = shrink_columns(network.model, inputs, masks)
            else:
                # the norms of a network that was pruned in units run over those that are kept
                over_units = saved is not None and saved.prunes(Unit)
                done = shrink_dead(network.model, inputs, over_units=over_units, masks=masks)
            if not done.lost:
                raise InputError("no unit of this network is dead: say what is to go with --sparsity")
        else:
            try:
                done = prune_groups(
                    network.model,
                    inputs,
                    sparsity,
                    kinds=kept_kinds,
                    ignore=ignore or (),
                    residual=residual,
                    round_to=round_to,
                    masks=masks,
                    form="graph" if form == "graph" else "modules",
                )
            except ModelError as error:
                raise ModelError(as_options(str(error))) from error
        architecture = None if done.form == "graph" else network.architecture
        useful = Masks({name: mask for name, mask in done.masks.items() if not bool(mask.all())})
        # before it is replaced, where it lies in the same folder
        stored = None if network.saved is None else folder_bytes(network.saved.path)
        save_pretrained(done, out, masks=useful, architecture=architecture)
        sizes = _bytes_when_saved(network, dense) if stored is None else stored, folder_bytes(out)
        before, after = _costs(network, dense, done.model, inputs, sizes)
    if as_json:
        shrunk = {key: value for key, value in done.to_dict().items() if "parameters" not in key}
        print_json({"folder": str(out), "batch": batch, "before": before, "after": after, **shrunk})
    else:
        Console(highlight=False).print(_table(before, after))
        _show(done, batch, out, network)


_TURNS, _RUNS = 4, 15


def _bytes_when_saved(network: Network, dense: nn.Module) -> int:
    """The bytes of the files that a network would have."""
    with tempfile.TemporaryDirectory() as place:
        return folder_bytes(save_pretrained(dense, Path(place) / "net", architecture=network.architecture))


def _costs(
    network: Network, dense: nn.Module, small: nn.Module, inputs: Tensor, sizes: tuple[int, int]
) -> list[dict[str, Any]]:
    """Costs and quality before and after, timed in turns, so that a busy moment of the machine meets both.

    Args:
        network: what was shrunk.
        dense: as it was before.
        small: what became of it.
        inputs: (N, ...) of a pass.
        sizes: bytes on disk of both.

    Returns:
        For each its parameters, MACs per example, bytes on disk, latency in seconds, the least median of some
        turns, and its quality, where both can be tested.
    """
    models = (dense, small)
    turns = [[latency(model, inputs, runs=_RUNS).median for model in models] for _ in range(_TURNS)]
    tested = only_batch(small) is None
    found = []
    for model, size, *seconds in zip(models, sizes, *turns, strict=True):
        counts = count(model, inputs)
        costs = {"parameters": counts.parameters, "macs": counts.macs, "bytes": size, "latency": min(seconds)}
        found.append({**costs, **(network.quality(model) if tested else {})})
    return found


def _table(before: Mapping[str, Any], after: Mapping[str, Any]) -> Table:
    """One line for each cost and quality, with what is left of it."""
    table = plain_table()
    table.add_column("")
    for heading in ("before", "after", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows: tuple[tuple[str, str, Callable[[float], str]], ...] = (
        ("parameters", "parameters", lambda count: f"{count:,}"),
        ("macs", "MACs", human_count),
        ("bytes", "bytes on disk", human_bytes),
        ("latency", "latency", human_seconds),
    )
    for key, name, written in rows:
        share = f"{100 * after[key] / before[key]:.1f}%" if before[key] else "-"
        table.add_row(name, written(before[key]), written(after[key]), share)
    for key in [key for key in before if key.startswith("test_")]:
        table.add_row(key.replace("_", " "), f"{before[key]:.4f}", f"{after[key]:.4f}", "")
    return table


def _show(done: ShrinkResult, batch: int, out: Path, network: Network) -> None:
    console = Console(highlight=False)
    console.print(
        f"latency: of a batch of {batch}, one thread\n"
        f"units: {sum(group.before - group.after for group in done.lost):,} taken out of "
        f"{len(done.lost):,} groups\n"
        f"proof: same outputs and gradients as the masked network, the largest relative\n"
        f"  difference is {done.deviation.relative:.1e} where rounding may make "
        f"{done.deviation.tolerance:.1e}"
    )
    if done.form == "graph":
        bound = only_batch(done.model)
        batches = "" if bound is None else f", for batches of {bound} only"
        console.print(f"form: the exported graph{batches}, because {escape(done.reason)}")
    else:
        console.print("form: modules of its own classes")
        for name, reason in done.stayed.items():
            console.print(f"{escape(name)} stays: {escape(reason)}", soft_wrap=True)
    console.print("saved in")
    typer.echo(str(out))
    loading = network.loading(out, as_graph=done.form == "graph")
    console.print(f"[dim]Load it with {escape(loading)}.[/dim]", soft_wrap=True)
