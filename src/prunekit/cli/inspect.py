"""`prunekit inspect`: the layers of a network, its coupled groups, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import prunekit.cli.options as options
from prunekit.cli.networks import TRACED, open_network
from prunekit.cli.options import as_options, only_results, print_json, table_console
from prunekit.cli.pack import show_packed
from prunekit.errors import InputError, escaped
from prunekit.graph import GroupPlan, parameters_per_unit
from prunekit.graph import groups as coupled
from prunekit.measure import (
    Counts,
    Latency,
    count,
    human_bytes,
    human_seconds,
    latency,
    layer_table,
    peak_memory,
    plain_table,
)
from prunekit.packing import is_packed


def inspect(
    model: options.Model,
    data: options.Data = None,
    data_dir: options.DataDir = None,
    weights: options.Weights = None,
    input_shape: options.InputShape = None,
    outputs: options.Outputs = 10,
    tokens: options.Tokens = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Examples per pass of latency and memory; else one.")
    ] = None,
    groups: Annotated[
        bool,
        typer.Option(
            "--groups", help="Show what is coupled and can be taken out, instead; with --ignore, --residual."
        ),
    ] = False,
    ignore: options.Ignore = None,
    residual: options.Residual = False,
    max_bytes: options.MaxBytes = None,
    as_json: options.Json = False,
) -> None:
    """Show a network layer by layer: parameters, zeros, MACs, and its latency and memory.

    Of a packed file: what each layer takes in it;
    with --data, --input-shape or --batch as of any other network.

    With --groups: the units that can be taken out, with everything that goes with
    them, and what has to stay, with the reason.

    Example: prunekit inspect resnet20 --input-shape 3,32,32
    """
    if not groups and (ignore or residual):
        raise InputError("--ignore and --residual say what can be taken out: add --groups")
    as_any_other = groups or any(each is not None for each in (data, weights, input_shape, tokens, batch))
    if not as_any_other and is_packed(Path(model)):
        show_packed(Path(model), max_bytes, as_json)
        return
    if max_bytes is not None:
        raise InputError("--max-bytes goes with the table of a packed file, without other options")
    with only_results():
        network = open_network(
            model, data=data, data_dir=data_dir, weights=weights, input_shape=input_shape, outputs=outputs
        )
        batch = network.batch(batch, TRACED if groups else 1)
        example = network.examples(batch, tokens)
        plan = coupled(network.model, example, ignore=ignore or (), residual=residual) if groups else None
    if plan is not None:
        _show_plan(plan, parameters_per_unit(network.model, plan), as_json)
        return
    with only_results():
        counts = count(network.model, example)
        timing = latency(network.model, example)
        memory = peak_memory(network.model, example)
        tested = network.quality()
    if as_json:
        times = {"median": timing.median, "p10": timing.p10, "p90": timing.p90, "batch": batch}
        print_json({**counts.to_dict(), "latency": times, "peak_memory": memory, **tested})
    else:
        _show(counts, timing, memory, tested, batch)


def _show_plan(plan: GroupPlan, each: dict[str, float], as_json: bool) -> None:
    if as_json:
        found = plan.to_dict()["groups"]
        print_json({"groups": [{**group, "parameters_per_unit": each[group["name"]]} for group in found]})
    else:
        table_console().print(groups_table(plan, each), soft_wrap=False)


def _show(counts: Counts, timing: Latency, memory: int, tested: dict[str, float], batch: int) -> None:
    console = Console(highlight=False)
    table_console().print(layer_table(counts))
    console.print(
        f"latency: {human_seconds(timing.median)} median, {human_seconds(timing.p10)} to "
        f"{human_seconds(timing.p90)} (batch {batch}, one thread)\n"
        f"memory: {human_bytes(counts.bytes)} of weights, {human_bytes(memory)} at the peak of a pass"
    )
    for key, value in tested.items():
        console.print(f"{key.replace('_', ' ')}: {value:.4f}")


_NAMES = 3  # of the norms below the table


def groups_table(plan: GroupPlan, each: Mapping[str, float]) -> RenderableType:
    """The groups that can lose units, and below them those that stay, by their reasons.

    Args:
        plan: the groups.
        each: for each group the parameters that go with one of its units, on average.
    """
    shown: list[RenderableType] = [_prunable(plan, each)]
    norms = list(dict.fromkeys(norm for group in plan.prunable for norm in group.normalised))
    if norms:
        more = f" and {len(norms) - _NAMES} more" if len(norms) > _NAMES else ""
        text = f"* statistics run over the units that are kept, in {', '.join(norms[:_NAMES])}{more}"
        shown.append(Text(escaped(text)))
    by_reason: dict[str, list[str]] = {}
    for group in plan.groups:
        if group.frozen is not None:
            by_reason.setdefault(group.frozen, []).append(f"{group.name} ({group.units:,})")
    for reason, names in by_reason.items():
        shown.append(Text(escaped(f"stays: {as_options(reason)}")))
        shown.append(Padding(Text(escaped(", ".join(names))), (0, 0, 0, 4), expand=False))
    return Lines(*shown)


def _prunable(plan: GroupPlan, each: Mapping[str, float]) -> Table:
    caption = None if plan.prunable else "no group can lose units"
    table = plain_table(caption=caption, caption_justify="left")
    table.add_column("group", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for heading in ("units", "members", "per unit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in plan.prunable:
        name = escaped(group.name.replace(f" ({group.kind})", ""))  # the kind has a column of its own
        table.add_row(
            Text(name + (" *" if group.normalised else "")),  # a string would be read as markup
            group.kind,
            f"{group.units:,}",
            f"{len(group.members):,}",
            f"{each[group.name]:,.0f}",
        )
    return table
