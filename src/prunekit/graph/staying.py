"""Which groups stay so that a network's own code holds: of the choices there are, what costs least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs, arguments
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.class_fit import Blamed, in_the_way, misfit
from prunekit.graph.copies import copy_of
from prunekit.graph.coupling_graph import CouplingGraph
from prunekit.graph.equal_pieces import evened, started
from prunekit.graph.surgery import Operation, checked, operate, operation, parameters_after
from prunekit.modes import evaluating
from prunekit.targets import unwrap

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
    if not any(blamed):
        return None
    kinds = _EITHER if any(_either(each, found) for each in blamed) else _EITHER[:1]
    ways = [_settled(model, found, left, blamed, kind) for kind in kinds]
    possible = [way for way in ways if way is not None]
    return min(possible, key=lambda way: parameters_after(model, found.plan, way.left), default=None)


def smaller(
    model: nn.Module, found: CouplingGraph, kept: Mapping[str, Tensor], example_inputs: Inputs
) -> nn.Module:
    """A copy of a network without some of its units, to be counted or timed: what is left is not proven.

    As in `shrink`, units without which the network's own code cannot do are there.

    Args:
        model: the network, which stays as it is.
        found: its plan with its graphs.
        kept: for each group that loses units (units,) boolean flags, True = kept.
        example_inputs: on which the copy must run; where its own code does not, its graphs do.

    Raises:
        InputError, ModelError: as `shrink`.
    """
    model = unwrap(model)
    flags = checked(found.plan, kept)
    left, _ = started(model, found, flags, whole=False)
    args, kwargs = arguments(example_inputs)
    while True:
        work = operation(model, found, left)
        copied = copy_of(model)
        operate(copied, work.cut)
        try:
            with evaluating(copied), torch.no_grad():
                copied(*args, **kwargs)
            return copied
        except Exception:  # whatever a forward raises that has sizes written in its code
            blamed = in_the_way(work, found, left)
        if not blamed:
            place, _ = misfit(copied, work.graphs[0], work.keeping, example_inputs)
            blamed = [] if place is None else [place.groups(found, left, before=True)]
        choice = chosen(model, found, left, blamed)
        if choice is None or any(found.plan.group(name).normalised for name in choice.stayed):
            work, copied = operation(model, found, flags), copy_of(model)
            operate(copied, work.cut)
            return GraphModel(copied, work.graphs)
        left = choice.left


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
