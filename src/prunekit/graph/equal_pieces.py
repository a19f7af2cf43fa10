"""Pieces of one size stay of one size: code that cuts a tensor into halves cuts it in the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor, fx, nn

from prunekit.graph.capture import tensors_of
from prunekit.graph.captured import argument, module_of, op_name, shape_of
from prunekit.graph.groups import CouplingGraph
from prunekit.graph.labels import Flags, position
from prunekit.graph.members import l1_norms

_HALVES = ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split")
_PASSES = 8
"""Passes over the graph: what comes back at one place may be missing at another."""
Units = list[tuple[str, int]]
"""The units that an entry belongs to, each by its group and number."""


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
    cuts = {node: _owners(node, found, kept) for node in found.graphs[0].graph.nodes if _cuts_equally(node)}
    for _ in range(_PASSES):
        changed = False
        for node, owners in cuts.items():
            for name, unit in _missing(owners, len(node.meta["val"]), found, kept, norms, tensors):
                kept[name][unit] = changed = True
                place = module_of(node)
                where = f"{op_name(node)!r}{f' in {place!r}' if place else ''}"
                reasons[name] = f"the pieces that {where} cuts must lose equally many units"
        if not changed:
            break
    return {name: each for name, each in kept.items() if not bool(each.all())}, reasons


def _cuts_equally(node: fx.Node) -> bool:
    """Whether a node cuts an axis into pieces of one size that its code does not name one by one."""
    if node.op != "call_function" or op_name(node) not in _HALVES or not isinstance(node.args[1], int):
        return False
    axis = position(argument(node, "dim"), len(shape_of(node.args[0])))
    return len({int(value.shape[axis]) for value in node.meta["val"]}) == 1


def _missing(
    owners: Sequence[Units],
    count: int,
    found: CouplingGraph,
    kept: Mapping[str, Tensor],
    norms: dict[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> Units:
    """The units that have to come back where an axis with these owners is cut into so many pieces."""
    if not owners or len(owners) % count:
        return []
    kept = {name: each.clone() for name, each in kept.items()}
    back: Units = []
    while True:
        stays = np.array([all(bool(kept[name][unit]) for name, unit in units) for units in owners])
        pieces: Flags = stays.reshape(count, -1)
        sums = pieces.sum(1)
        if sums.min() == sums.max():
            return back
        start = int(sums.argmin()) * pieces.shape[1]
        gone = [
            each
            for entry in range(start, start + pieces.shape[1])
            for each in owners[entry]
            if not bool(kept[each[0]][each[1]])
        ]
        for name in {name for name, _ in gone} - norms.keys():
            norms[name] = l1_norms(tensors, found.plan.group(name))
        name, unit = max(gone, key=lambda each: float(norms[each[0]][each[1]]))
        kept[name][unit] = True
        back.append((name, unit))


def _owners(node: fx.Node, found: CouplingGraph, kept: Mapping[str, Tensor]) -> Sequence[Units]:
    """For each entry along the axis that a node cuts the units that it goes with; empty if none can go."""
    source = node.args[0]
    axis = position(argument(node, "dim"), len(shape_of(source)))
    size = shape_of(source)[axis]
    owners: list[Units] = [[] for _ in range(size)]
    names = [group.name for group in found.plan.groups]
    for labelling in found.labellings:
        values = labelling.nodes[0].get(str(source), ())
        labels = values[0][axis] if values else None
        for entry, label in enumerate(() if labels is None else labels.tolist()):
            number = int(labelling.group[label]) if label > 0 else -1
            if number >= 0 and names[number] in kept:
                owners[entry].append((names[number], int(labelling.unit[label])))
    return owners if any(owners) else []
