"""Which groups stay so that a network's own code holds: of the choices there are, what costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from prunekit.graph.class_fit import Blamed, in_the_way
from prunekit.graph.equal_pieces import evened
from prunekit.graph.groups import CouplingGraph
from prunekit.graph.surgery import Operation, operation, parameters_after

_EITHER = ("head width", "heads")
"""Kinds of groups that meet in one axis or one product, of which one may be enough to stay."""


@dataclass(frozen=True)
class Choice:
    """The groups that lose units, and those that stay.

    Attributes:
        left: flags of the groups that still lose units.
        stayed: the groups that do not, or of which more stays, each with the reason.
        work: what takes the units out.
    """

    left: dict[str, Tensor]
    stayed: dict[str, str]
    work: Operation


def chosen(
    model: nn.Module, found: CouplingGraph, left: Mapping[str, Tensor], blamed: Sequence[Blamed]
) -> Choice | None:
    """The groups that still lose units once no size that the code computes stands in their way.

    Where the heads of attention and their width are blamed together, either are kept whole, and the other are
    not unless they are blamed again: of both ways the one with fewer parameters left is taken.

    Args:
        model: the network.
        found: its plan with its graphs.
        left: flags of the groups that lose units.
        blamed: of these, place by place.

    Returns:
        None where nothing would go.
    """
    kinds = _EITHER if any(_either(each, found) for each in blamed) else _EITHER[:1]
    ways = [_settled(model, found, left, blamed, kind) for kind in kinds]
    possible = [way for way in ways if way is not None]
    return min(possible, key=lambda way: parameters_after(model, found.plan, way.left), default=None)


def _settled(
    model: nn.Module, found: CouplingGraph, left: Mapping[str, Tensor], blamed: Sequence[Blamed], kind: str
) -> Choice | None:
    """Groups taken back until nothing is blamed any more; of heads and their width those of that kind."""
    stayed: dict[str, str] = {}
    while True:
        names = _taken_back(found, blamed, kind)
        rest, uneven = evened(
            model, found, {name: flags for name, flags in left.items() if name not in names}
        )
        stayed |= {**uneven, **names}
        if not rest:
            return None
        left, work = rest, operation(model, found, rest)
        blamed = in_the_way(work, found, rest)
        if not blamed:
            return Choice(rest, stayed, work)


def _taken_back(found: CouplingGraph, blamed: Sequence[Blamed], kind: str) -> Blamed:
    """The groups that are to stay: first those of which one may be enough, since it may help the rest."""
    either = [each for each in blamed if _either(each, found)]
    names: Blamed = {}
    for each in either or blamed:
        for name, why in each.items():
            if not either or found.plan.group(name).kind == kind:
                names.setdefault(name, why)
    return names


def _either(names: Blamed, found: CouplingGraph) -> bool:
    return {*_EITHER} <= {found.plan.group(name).kind for name in names}
