"""Pieces of one size stay of one size: halves that are cut in the middle, axes that one attribute counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from prunekit.graph.capture import tensors_of
from prunekit.graph.captured_graph import argument, module_of, op_name, shape_of
from prunekit.graph.coupling_graph import CouplingGraph
from prunekit.graph.labels import position
from prunekit.graph.members import l1_norms
from prunekit.graph.places import CodePlace, place_in, short
from prunekit.graph.size_run import Read

_HALVES = ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split")
_LAID = ("view", "reshape", "_unsafe_view")
_PASSES = 8
"""Passes over the graph: what comes back at one place may be missing at another."""
Units = list[tuple[str, int]]
"""The units that an entry belongs to, each by its group and number."""


def started(
    model: nn.Module, found: CouplingGraph, flags: Mapping[str, Tensor], *, whole: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The flags with which pieces of one size stay so, and of which groups more stays; see `evened`.

    They are as given where nothing would go, or where statistics run over units that stay without effect.

    Args:
        model: the network.
        found: its plan with its graphs.
        flags: of the groups that lose units.
        whole: whether groups that stay keep all that their units do.
    """
    left, stayed = evened(model, found, flags)
    if not left or (not whole and any(found.plan.group(name).normalised for name in stayed)):
        return dict(flags), {}
    return left, stayed


def evened(
    model: nn.Module, found: CouplingGraph, flags: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Flags with which all pieces of one size lose equally many entries.

    Of the pieces that would lose more, the units with the largest L1 norms stay.

    Args:
        model: the network.
        found: its plan with its graphs.
        flags: of the groups that lose units.

    Returns:
        The flags of the groups that still lose units, and for those of which more stay the reason.
    """
    kept = {name: each.clone() for name, each in flags.items()}
    norms: dict[str, Tensor] = {}
    reasons: dict[str, str] = {}
    tensors = tensors_of(model)
    ties = [*_cuts(found, kept), *_attributes(found, kept)]
    for _ in range(_PASSES):
        changed = False
        for tie in ties:
            for name, unit in _missing(tie.pieces, found, kept, norms, tensors):
                kept[name][unit] = changed = True
                reasons[name] = tie.why
        if not changed:
            break
    return {name: each for name, each in kept.items() if not bool(each.all())}, reasons


@dataclass(frozen=True)
class _Tie:
    """Pieces that must keep equally many entries, each by the units of its entries, and why."""

    pieces: Sequence[Sequence[Units]]
    why: str


def _cuts(found: CouplingGraph, kept: Mapping[str, Tensor]) -> Iterator[_Tie]:
    for node in found.graphs[0].graph.nodes:
        if not _cuts_equally(node):
            continue
        source = node.args[0]
        owners = _owners(str(source), position(argument(node, "dim"), len(shape_of(source))), found, kept)
        size, count = len(owners), len(node.meta["val"])
        if size and size % count == 0:
            place = module_of(node)
            where = f"{op_name(node)!r}{f' in {place!r}' if place else ''}{short(place_in(node))}"
            pieces = [owners[start : start + size // count] for start in range(0, size, size // count)]
            yield _Tie(pieces, f"the pieces that {where} cuts must lose equally many units")


def _attributes(found: CouplingGraph, kept: Mapping[str, Tensor]) -> Iterator[_Tie]:
    """Axes of which the code says by one attribute how many entries they have."""
    uses = found.graphs[0].uses
    nodes = {node.name: node for node in found.graphs[0].graph.nodes}
    axes: dict[Read, dict[tuple[str, int], None]] = {}
    lines: dict[Read, CodePlace | None] = {}
    for use in uses.arguments if uses else ():
        node = nodes.get(use.node)
        axis = use.place[1] if len(use.place) == 2 else None
        if isinstance(use.expression, Read) and node and op_name(node) in _LAID and isinstance(axis, int):
            axes.setdefault(use.expression, {})[use.node, axis] = None
            lines.setdefault(use.expression, use.line)
    for read, places in axes.items():
        pieces = {}
        for place in places if len(places) > 1 else ():
            owners = _owners(*place, found, kept)
            if owners:  # others cannot lose any, which the code says by another line
                pieces[tuple(map(tuple, owners))] = owners
        if len(pieces) > 1:
            owner = f" of {read.module!r}" if read.module else ""
            where = f"{read.attribute!r}{owner}{short(lines[read])}"
            yield _Tie(list(pieces.values()), f"all that {where} counts must lose equally many units")


def _cuts_equally(node: fx.Node) -> bool:
    """Whether a node cuts an axis into pieces of one size that its code does not name one by one."""
    if node.op != "call_function" or op_name(node) not in _HALVES or not isinstance(node.args[1], int):
        return False
    axis = position(argument(node, "dim"), len(shape_of(node.args[0])))
    return len({int(value.shape[axis]) for value in node.meta["val"]}) == 1


def _missing(
    pieces: Sequence[Sequence[Units]],
    found: CouplingGraph,
    kept: Mapping[str, Tensor],
    norms: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> Units:
    """The units that have to come back for the pieces to keep equally many entries."""
    kept = {name: each.clone() for name, each in kept.items()}
    back: Units = []
    while True:
        sums = [
            sum(all(bool(kept[name][unit]) for name, unit in units) for units in piece) for piece in pieces
        ]
        if min(sums) == max(sums):
            return back
        gone = [
            each
            for units in pieces[sums.index(min(sums))]
            for each in units
            if not bool(kept[each[0]][each[1]])
        ]
        if not gone:  # of axes that are not of one size, all that they have
            return back
        for name in {name for name, _ in gone} - norms.keys():
            norms[name] = l1_norms(tensors, found.plan.group(name))
        name, unit = max(gone, key=lambda each: float(norms[each[0]][each[1]]))
        kept[name][unit] = True
        back.append((name, unit))


def _owners(node: str, axis: int, found: CouplingGraph, kept: Mapping[str, Tensor]) -> list[Units]:
    """For each entry along an axis of a node the units that it goes with; empty if none can go."""
    owners: list[Units] = []
    names = [group.name for group in found.plan.groups]
    for labelling in found.labellings:
        values = labelling.nodes[0].get(node, ())
        labels = values[0][axis] if values else None
        if labels is not None:
            owners = owners or [[] for _ in range(len(labels))]
            for entry, label in enumerate(labels.tolist()):
                number = int(labelling.group[label]) if label > 0 else -1
                if number >= 0 and names[number] in kept:
                    owners[entry].append((names[number], int(labelling.unit[label])))
    return owners if any(owners) else []
