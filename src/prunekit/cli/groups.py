"""What is coupled in a network, as tables for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping

from rich import box
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from prunekit.graph import Group, Plan
from prunekit.settings import escaped

_WIDTH = 80
_NAMES = 3  # of the norms below the table


def groups_table(plan: Plan, each: Mapping[str, float]) -> RenderableType:
    """The groups that can lose units, and below them those that stay, by their reasons; for 80 columns.

    Args:
        plan: the groups.
        each: for each group the parameters that go with one of its units, on average.
    """
    shown: list[RenderableType] = [_prunable(plan, each)]
    norms = [norm for group in plan.prunable for norm in group.normalised]
    if norms:
        shown.append(Text(_wrapped(_statistics(list(dict.fromkeys(norms))))))
    shown += [Text(text) for text in _staying(plan)]
    return Lines(*shown)


def _prunable(plan: Plan, each: Mapping[str, float]) -> Table:
    table = Table(
        box=box.SIMPLE,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        caption=None if plan.prunable else "no group can lose units",
        caption_justify="left",
    )
    table.add_column("group", overflow="fold")
    table.add_column("kind", no_wrap=True)
    for heading in ("units", "members", "per unit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for group in plan.prunable:
        table.add_row(
            Text(_name(group) + (" *" if group.normalised else "")),  # a string would be read as markup
            group.kind,
            f"{group.units:,}",
            f"{len(group.members):,}",
            f"{each[group.name]:,.0f}",
        )
    return table


def _name(group: Group) -> str:
    """Without the kind, which has a column of its own."""
    return escaped(group.name.replace(f" ({group.kind})", ""))


def _statistics(norms: list[str]) -> str:
    more = f" and {len(norms) - _NAMES} more" if len(norms) > _NAMES else ""
    return f"* statistics run over the units that are kept, in {', '.join(norms[:_NAMES])}{more}"


def _staying(plan: Plan) -> list[str]:
    """A paragraph for each reason, with the groups that stay for it."""
    by_reason: dict[str, list[str]] = {}
    for group in plan.groups:
        if group.frozen is not None:
            by_reason.setdefault(group.frozen, []).append(f"{group.name} ({group.units:,})")
    return [
        _wrapped(f"stays: {as_options(reason)}") + "\n" + _wrapped(", ".join(names), indent="    ")
        for reason, names in by_reason.items()
    ]


def _wrapped(text: str, indent: str = "") -> str:
    return "\n".join(
        textwrap.wrap(
            escaped(text),
            _WIDTH,
            initial_indent=indent,
            subsequent_indent=indent or "  ",
            break_on_hyphens=False,
        )
    )


def as_options(reason: str) -> str:
    """As one asks for it on the command line."""
    return reason.replace("(residual=True)", "(--residual)").replace("(ignore)", "(--ignore)")
