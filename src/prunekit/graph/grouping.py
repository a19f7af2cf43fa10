"""Classes of labels that go together, as groups of units with their members."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunekit.graph.analysis import FEATURES, Block, Propagation, positions
from prunekit.graph.groups import INPUT, Group, Member, Role
from prunekit.graph.labels import Ints

# the first of these that was seen names the group
KINDS = ("heads", "head width", "residual stream", "filters", "MLP width", "neurons", "embedding")


@dataclass(frozen=True)
class Grouping:
    """Groups of one analysis and where each class of labels went.

    Attributes:
        groups: in the order of their first producer.
        group_of: (labels,) number of the group that a class, named by its root, belongs to; -1 for none.
        unit_of: (labels,) number of the unit within the group.
    """

    groups: tuple[Group, ...]
    group_of: Ints
    unit_of: Ints


def grouping_of(propagation: Propagation) -> Grouping:
    """Classes whose producers are the same axes make a group; each class is a unit of it."""
    label, block, index = positions(propagation)
    roots = propagation.classes.root[label] if label.size else label
    keys = _keys(propagation, roots, block)
    group_of = np.full(propagation.classes.root.size, -1, dtype=np.int64)
    unit_of = np.full(propagation.classes.root.size, -1, dtype=np.int64)
    order = np.lexsort((label, keys[roots])) if label.size else label
    groups: list[Group] = []
    starts = (
        np.flatnonzero(np.r_[True, np.diff(keys[roots][order].view(np.int64)) != 0]) if order.size else order
    )
    stretches = sorted(np.split(order, starts[1:]), key=lambda part: int(part[0])) if order.size else []
    kinds = _kinds(propagation)
    for part in stretches:
        units, first = np.unique(roots[part], return_index=True)
        units = units[np.argsort(first)]
        unit_of[units] = np.arange(units.size)
        group = _group(propagation, part, unit_of[roots[part]], units, block, index, kinds)
        if group is not None:
            group_of[units] = len(groups)
            groups.append(group)
    groups = _with_norms(propagation, groups, group_of)
    return Grouping(tuple(groups), group_of, unit_of)


def _keys(propagation: Propagation, roots: Ints, block: Ints) -> Ints:
    """For each class a number that is the same for classes with the same producers and the same reason."""
    wide = max(len(propagation.blocks), 1)
    pairs = np.sort(roots * wide + block)  # np.unique would hash them, which takes ten times as long
    root, number = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], wide)
    producer = np.array([_role(propagation, each) == "producer" for each in propagation.blocks], dtype=bool)
    hashes = np.random.default_rng(0).integers(1, 2**62, size=wide, dtype=np.int64)
    count = propagation.classes.root.size
    every, producing = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(every, root, hashes[number])
    makes = producer[number] if number.size else np.zeros(0, bool)
    np.add.at(producing, root[makes], hashes[number[makes]])
    keys = np.where(producing != 0, producing, every)
    found = sorted(set(propagation.classes.reason.values()))
    reasons = {reason: number for number, reason in enumerate(found, 1)}
    frozen = np.zeros(count, np.int64)
    for root_label, reason in propagation.classes.reason.items():
        frozen[root_label] = reasons[reason]
    return keys + frozen * 1_000_003


def _role(propagation: Propagation, block: Block) -> Role:
    found = propagation.propagator.roles.get((block.tensor, block.dim), "along")
    return "producer" if found == "producer" else "consumer" if found == "consumer" else "along"


def _kinds(propagation: Propagation) -> Ints:
    """For each class the number of its kind."""
    kinds = np.full(propagation.classes.root.size, len(KINDS), dtype=np.int64)
    for kind, labels in propagation.propagator.hints:
        roots = propagation.classes.root[labels[labels > 0]]
        kinds[roots] = np.minimum(kinds[roots], KINDS.index(kind))
    return kinds


def _group(
    propagation: Propagation, part: Ints, unit: Ints, units: Ints, block: Ints, index: Ints, kinds: Ints
) -> Group | None:
    members = []
    # in the order of the labels the entries of one axis lie together
    part, unit = part[by_label := np.argsort(part, kind="stable")], unit[by_label]
    numbers, starts = np.unique(block[part], return_index=True)
    for number, here in zip(numbers.tolist(), np.split(np.arange(part.size), starts[1:]), strict=True):
        found = propagation.blocks[number]
        indices = _by_unit(unit[here], index[part[here]], units.size)
        members.append(Member(found.tensor, found.dim, indices, _role(propagation, found)))
    producers = [member for member in members if member.role == "producer"]
    reason = propagation.classes.reason.get(int(units[0]))
    if not producers and (reason is not None or len(members) < 2):
        return None
    if reason is None and units.size == 1:
        reason = "there is only one unit"
    kind = int(kinds[units].min())
    first = (producers or members)[0].tensor
    if first == FEATURES:
        return Group(INPUT, "input features", int(units.size), tuple(members[1:]), reason)
    if members[0].tensor == FEATURES:  # features that meet units, as in x + f(x)
        members, reason = members[1:], reason or "is the network's input, too"
    name = first.rpartition(".")[0] or first
    return Group(
        name, KINDS[kind] if kind < len(KINDS) else "neurons", int(units.size), tuple(members), reason
    )


def _by_unit(unit: Ints, index: Ints, count: int) -> tuple[tuple[int, ...], ...]:
    order = np.lexsort((index, unit))
    sizes = np.bincount(unit, minlength=count)
    if sizes.max(initial=0) == 1 == sizes.min(initial=1):
        return tuple(zip(index[order].tolist(), strict=True))
    ends = np.cumsum(sizes).tolist()
    entries = index[order].tolist()
    return tuple(tuple(entries[end - size : end]) for end, size in zip(ends, sizes.tolist(), strict=True))


def _with_norms(propagation: Propagation, groups: list[Group], group_of: Ints) -> list[Group]:
    found: dict[int, dict[str, None]] = {}
    for norm, labels in propagation.propagator.norms:
        numbers = np.unique(group_of[propagation.classes.root[labels[labels > 0]]])
        for number in numbers[numbers >= 0].tolist():
            found.setdefault(number, {})[norm] = None
    return [
        Group(group.name, group.kind, group.units, group.members, group.frozen, tuple(found.get(number, ())))
        for number, group in enumerate(groups)
    ]
