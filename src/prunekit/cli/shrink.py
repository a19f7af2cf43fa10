"""`prunekit shrink`: one network, physically smaller, proven and saved."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.markup import escape
from torch import nn

from prunekit.cli.inspect import as_options
from prunekit.cli.metrics import Figures, figures, figures_table, folder_bytes
from prunekit.cli.networks import (
    TRACED,
    InputShape,
    Network,
    Outputs,
    Tokens,
    batch_of,
    examples,
    open_network,
    sizes_of,
)
from prunekit.cli.terminal import DataDir, Json, only_results, print_json
from prunekit.data import load
from prunekit.errors import InputError, ModelError
from prunekit.graph import GraphModel, ShrinkResult, prune_groups, shrink_off
from prunekit.masks import Masks
from prunekit.saving import check_free, save_pretrained
from prunekit.structure import is_chain, shrink_dead


@dataclass(frozen=True)
class _Asked:
    """What is to go."""

    sparsity: float | None
    kinds: tuple[str, ...] | None
    ignore: tuple[str, ...]
    residual: bool
    round_to: int


def shrink(
    model: Annotated[
        str, typer.Argument(help="A saved folder, a model's name, module:function, or {name: mlp, ...}.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the smaller network; new or empty.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Share of the units of every group to take out, the least first.")
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(help="Only these kinds of groups, such as filters,heads.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(help="A layer, or pattern, that keeps its sizes; may be repeated.")
    ] = None,
    residual: Annotated[
        bool, typer.Option("--residual", help="Let residual streams lose units, too.")
    ] = False,
    round_to: Annotated[int, typer.Option(min=1, help="Keep multiples of so many units.")] = 1,
    data: Annotated[str | None, typer.Option(help="Dataset to test on; gives the shapes too.")] = None,
    data_dir: DataDir = None,
    weights: Annotated[Path | None, typer.Option(help="Weights: safetensors, or a saved folder.")] = None,
    input_shape: InputShape = None,
    outputs: Outputs = 10,
    tokens: Tokens = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Examples per pass; else two.")] = None,
    as_json: Json = False,
) -> None:
    """Make a network physically smaller, prove it, and save it.

    Without --sparsity: the units go that are off, as those that `prunekit prune`
    removed. With it: units go by the L1 norm of their weights, the least first.

    Example: prunekit shrink resnet20 --input-shape 3,32,32 --sparsity 0.5 --out small
    """
    asked = _asked(sparsity, kinds, ignore or [], residual, round_to)
    _check_out(out)
    with only_results():
        found = None if data is None else load(data, data_dir)
        sizes = sizes_of(input_shape, outputs)
        network = open_network(model, data=found, sizes=sizes, weights=weights)
        batch = batch_of(network, batch, TRACED)
        inputs = examples(network, model, found, sizes, batch=batch, tokens=tokens)
        masks = Masks({}) if network.saved is None else network.saved.masks()
        dense = copy.deepcopy(network.model)
        done, left = _smaller(network, inputs, masks, asked)
        # an exported graph takes batches of one size only, which those of the dataset are not
        test = None if isinstance(done.model, GraphModel) else found
        before, after = figures(dense, done.model, inputs, test)
        architecture = None if done.form == "graph" else network.architecture
        save_pretrained(done, out, masks=left, architecture=architecture)
        stored = folder_bytes(network.saved.folder) if network.saved else _stored(dense, network)
    columns = (before.stored(stored), after.stored(folder_bytes(out)))
    if as_json:
        shrunk = {key: value for key, value in done.to_dict().items() if "parameters" not in key}
        sizes_of_both = {"before": columns[0].to_dict(), "after": columns[1].to_dict()}
        print_json({"folder": str(out), "batch": batch, **sizes_of_both, **shrunk})
    else:
        _show(done, columns, batch, out, network)


def _asked(
    sparsity: float | None, kinds: str | None, ignore: list[str], residual: bool, round_to: int
) -> _Asked:
    if sparsity is None:
        if kinds is not None or ignore or residual or round_to > 1:
            raise InputError("--kinds, --ignore, --residual and --round-to say what --sparsity takes: add it")
    elif not 0 < sparsity < 1:
        raise InputError(f"--sparsity {sparsity:g}: write a share between 0 and 1, such as 0.4 for 40 %")
    chosen = None if kinds is None else tuple(kind.strip() for kind in kinds.split(","))
    return _Asked(sparsity, chosen, tuple(ignore), residual, round_to)


def _check_out(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} is not empty: choose another folder with --out")
    check_free(out)


def _smaller(
    network: Network, inputs: torch.Tensor, masks: Masks, asked: _Asked
) -> tuple[ShrinkResult, Masks]:
    """What is left, and the masks of its single weights."""
    model = network.model
    if asked.sparsity is not None:
        try:
            done = prune_groups(
                model,
                inputs,
                asked.sparsity,
                kinds=asked.kinds,
                ignore=asked.ignore,
                residual=asked.residual,
                round_to=asked.round_to,
                masks=masks,
            )
        except ModelError as error:
            raise ModelError(as_options(str(error))) from error
    elif is_chain(model):
        done = shrink_dead(model, inputs, masks=masks)  # constants go into the biases of the next layer
        if not done.lost:
            raise InputError("no unit of this network is off: say what is to go with --sparsity")
    else:
        over_units = network.saved is not None and network.saved.prunes_groups
        done = shrink_off(model, inputs, over_units=over_units, masks=masks)
    return done, _useful(done.masks)


def _useful(masks: Masks) -> Masks:
    """Without those that keep everything, which would only make the file longer."""
    return Masks({name: mask for name, mask in masks.items() if not bool(mask.all())})


def _stored(model: nn.Module, network: Network) -> int:
    """The bytes that the network as it was takes when it is saved."""
    with tempfile.TemporaryDirectory() as place:
        return folder_bytes(save_pretrained(model, Path(place) / "net", architecture=network.architecture))


def _show(
    done: ShrinkResult, columns: tuple[Figures, Figures], batch: int, out: Path, network: Network
) -> None:
    console = Console(highlight=False)
    console.print(figures_table(*columns))
    console.print(
        f"latency: of a batch of {batch}, one thread\n"
        f"units: {sum(group.before - group.after for group in done.lost):,} taken out of "
        f"{len(done.lost):,} groups\n"
        f"proof: same outputs and gradients as the masked network, the largest relative\n"
        f"  difference is {done.deviation.relative:.1e} where rounding may make "
        f"{done.deviation.tolerance:.1e}"
    )
    if done.form == "graph":
        console.print(f"form: the exported graph, for batches of {batch} only, because {escape(done.reason)}")
    else:
        console.print("form: modules of its own classes")
    console.print("saved in")
    typer.echo(str(out))
    console.print(f"[dim]Load it with {escape(_load(done, out, network))}.[/dim]", soft_wrap=True)


def _load(done: ShrinkResult, out: Path, network: Network) -> str:
    known = network.architecture is not None and ":" not in network.architecture.model.name
    return f'prunekit.load_pretrained("{out}"{"" if known or done.form == "graph" else ", model"})'
