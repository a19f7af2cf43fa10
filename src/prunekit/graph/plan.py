"""From a network and example inputs to the plan of what is coupled: classes of labels become groups."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.garbage import old_objects_left_alone
from prunekit.graph.capture import captured, tensors_of
from prunekit.graph.captured_graph import Captured
from prunekit.graph.coupling_graph import (
    INPUT,
    CouplingGraph,
    Features,
    Group,
    GroupPlan,
    Labelling,
    Member,
    features_of,
)
from prunekit.graph.labels import Ints, SplitPolicy
from prunekit.graph.places import names_a_line, place_in, short
from prunekit.graph.propagate import FEATURES, PARAMETRIZED, Propagation, analysed, positions
from prunekit.targets import parametrized_by, unwrap, weight_of

# the first of these that was seen names the group
KINDS = ("heads", "head width", "residual stream", "filters", "MLP width", "neurons", "embedding")


def grouping_of(propagation: Propagation) -> tuple[list[Group], Labelling]:
    """Groups of one analysis, in the order of their first producers, and the unit that each label stands for.

    Classes of labels whose producers are the same axes make a group; each class is a unit of it.
    """
    label, block, index = positions(propagation)
    roots = propagation.classes.root[label]
    keys = _keys(propagation, roots, block)
    group_of = np.full(propagation.classes.root.size, -1, dtype=np.int64)
    unit_of = np.full(propagation.classes.root.size, -1, dtype=np.int64)
    order = np.lexsort((label, keys[roots]))
    stretches = np.split(order, np.flatnonzero(np.diff(keys[roots][order])) + 1)
    groups: list[Group] = []
    kinds, shared = _kinds(propagation), _SharedIndices()
    for part in sorted((part for part in stretches if part.size), key=lambda part: int(part[0])):
        units, first = np.unique(roots[part], return_index=True)
        units = units[np.argsort(first)]
        unit_of[units] = np.arange(units.size)
        group = _group(propagation, part, unit_of[roots[part]], units, block, index, kinds, shared)
        if group is not None:
            group_of[units] = len(groups)
            groups.append(group)
    groups = _with_norms(propagation, groups, group_of)
    root = propagation.classes.root
    return groups, Labelling(propagation.nodes, group_of[root], unit_of[root])


def _keys(propagation: Propagation, roots: Ints, block: Ints) -> Ints:
    """For each class a number that is the same for classes with the same producers and the same reason."""
    wide = max(len(propagation.blocks), 1)
    pairs = np.sort(roots * wide + block)  # np.unique would hash them, which takes ten times as long
    root, number = np.divmod(pairs[np.diff(pairs, prepend=-1) > 0], wide)
    producer = np.array([propagation.role(each) == "producer" for each in propagation.blocks], dtype=bool)
    hashes = np.random.default_rng(0).integers(1, 2**62, size=wide, dtype=np.int64)
    count = propagation.classes.root.size
    every, producing = np.zeros(count, np.int64), np.zeros(count, np.int64)
    np.add.at(every, root, hashes[number])
    makes = producer[number]
    np.add.at(producing, root[makes], hashes[number[makes]])
    keys = np.where(producing != 0, producing, every)
    found = sorted(set(propagation.classes.reason.values()))
    reasons = {reason: number for number, reason in enumerate(found, 1)}
    frozen = np.zeros(count, np.int64)
    for root_label, reason in propagation.classes.reason.items():
        frozen[root_label] = reasons[reason]
    return keys + frozen * 1_000_003


def _kinds(propagation: Propagation) -> Ints:
    """For each class the number of its kind."""
    kinds = np.full(propagation.classes.root.size, len(KINDS), dtype=np.int64)
    for kind, labels in propagation.propagator.hints:
        roots = propagation.classes.root[labels[labels > 0]]
        kinds[roots] = np.minimum(kinds[roots], KINDS.index(kind))
    return kinds


def _group(
    propagation: Propagation,
    part: Ints,
    unit: Ints,
    units: Ints,
    block: Ints,
    index: Ints,
    kinds: Ints,
    shared: _SharedIndices,
) -> Group | None:
    members = []
    # in the order of the labels the entries of one axis lie together
    part, unit = part[by_label := np.argsort(part, kind="stable")], unit[by_label]
    numbers, starts = np.unique(block[part], return_index=True)
    for number, here in zip(numbers.tolist(), np.split(np.arange(part.size), starts[1:]), strict=True):
        found = propagation.blocks[number]
        indices = shared.by_unit(unit[here], index[part[here]], units.size)
        members.append(Member(found.tensor, found.dim, indices, propagation.role(found)))
    producers = [member for member in members if member.role == "producer"]
    reason = propagation.classes.reason.get(int(units[0]))
    if not producers and (reason is not None or len(members) < 2):
        return None
    if reason is None and units.size == 1:
        reason = "there is only one unit"
    kind = int(kinds[units].min())
    first = (producers or members)[0].tensor
    if first == FEATURES:
        if len(members) == 1:  # what reads them, such as a weight that is computed, has no axis of theirs
            return None
        return Group(INPUT, "input features", int(units.size), tuple(members[1:]), reason)
    if members[0].tensor == FEATURES:  # features that meet units, as in x + f(x)
        members, reason = members[1:], reason or "is the network's input, too"
    name = weight_of(first)[0] or first
    return Group(
        name, KINDS[kind] if kind < len(KINDS) else "neurons", int(units.size), tuple(members), reason
    )


class _SharedIndices:
    """The indices of members, the same objects where they are the same, as in a weight, its bias and a norm.

    Else there were so many more objects that Python's garbage collector would look through all there are,
    which takes a tenth of a second.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[bytes, bytes, int], tuple[tuple[int, ...], ...]] = {}

    def by_unit(self, unit: Ints, index: Ints, count: int) -> tuple[tuple[int, ...], ...]:
        """For each of so many units the entries that are its own."""
        key = unit.tobytes(), index.tobytes(), count
        if key not in self._found:
            self._found[key] = _by_unit(unit, index, count)
        return self._found[key]


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
    return [replace(group, normalised=tuple(found.get(number, ()))) for number, group in enumerate(groups)]


_OTHER_POLICIES: tuple[SplitPolicy, ...] = ("first", "last")
# for each axis of a tensor the groups that its entries compute
Taken = dict[tuple[str, int], list[tuple[Group, set[int]]]]
_STREAM = "the residual stream stays unless it is asked for (residual=True)"


@old_objects_left_alone()
def groups(
    model: nn.Module, example_inputs: Inputs, *, ignore: Sequence[str] = (), residual: bool = False
) -> GroupPlan:
    """Which slices of which parameters and buffers go together, for any network that PyTorch can export.

    The operators that it calls on tensors without data are recorded in evaluation and in training mode; where
    that might not be all of the network, `torch.export` gives the graph. The network is left as it was.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        ignore: names or patterns of modules or parameters none of whose sizes may change.
        residual: whether the widths of residual streams can be pruned.

    Raises:
        InputError: where `ignore` matches nothing or the inputs are of no usable kind.
        ModelError: where the network cannot be exported, with the line at which it fails.
    """
    return traced(unwrap(model), example_inputs, ignore=ignore, residual=residual).plan


def traced(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ignore: Sequence[str] = (),
    residual: bool = False,
    inputs: bool = False,
    decided: bool = True,
) -> CouplingGraph:
    """The same plan of a network without wrappers, with the graphs and the labels of all their nodes.

    With `inputs` the features that the network reads are a group, too, where it has one input of real numbers
    and single features can be left out; with `decided` the graphs may be what values decided, see `captured`.
    Raises as `groups` does.
    """
    ignored = _ignored(model, ignore)
    graphs = captured(model, example_inputs, decided=decided)
    for features in features_of(graphs[0]) if inputs else ():
        found = _joined(graphs, _analyses(model, graphs, ignored, features), residual)
        if any(group.name == INPUT and group.frozen is None for group in found.plan.groups):
            return replace(found, features=features)
    found = _joined(graphs, _analyses(model, graphs, ignored), residual)
    return replace(found, plan=_without_statistics(found.plan, graphs))


def _without_statistics(plan: GroupPlan, graphs: Sequence[Captured]) -> GroupPlan:
    """Where other data or calls lead elsewhere, none takes statistics over kept units: such groups stay."""
    by_data = [line for graph in graphs if graph.others for line in graph.by_data]
    by_calls = [line for graph in graphs for line in graph.by_calls]
    if not by_data and not by_calls:
        return plan
    decided = f"values of the inputs decide what is computed, {by_data[0]}" if by_data else by_calls[0]
    reason = f"statistics run over it, and {decided}"
    return GroupPlan(
        tuple(
            replace(group, frozen=reason) if group.normalised and group.frozen is None else group
            for group in plan.groups
        )
    )


def _analyses(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    features: Features | None = None,
) -> list[Propagation]:
    """One analysis for each way to cut axes that makes a difference, the one with most units first."""
    graphs = [*graphs, *(other for graph in graphs for other in graph.others)]
    found = [analysed(model, graphs, ignored, policy="most", features=features)]
    if any(choice.site[-1] != "groups" for choice in found[0].propagator.choices):
        for policy in _OTHER_POLICIES:
            other = analysed(model, graphs, ignored, policy=policy, features=features)
            if all(_ways(other) != _ways(before) for before in found):
                found.append(other)
    return found


def _ways(propagation: Propagation) -> set[tuple[object, int]]:
    return {(choice.site, choice.candidate) for choice in propagation.propagator.choices}


def _ignored(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    if isinstance(patterns, str):
        raise InputError(f"ignore must be a list of names or patterns, not the text {patterns!r}")
    names = list(tensors_of(model))
    found = {name: PARAMETRIZED for name in names if parametrized_by(model, name) == "another"}
    for pattern in patterns:
        hit = [name for name in names if _names(pattern, name)]
        if not hit:
            raise InputError(f"ignore: {pattern!r} matches no module and no parameter of the network")
        found.update(dict.fromkeys(hit, "it is to be left as it is (ignore)"))
    return found


def _names(pattern: str, name: str) -> bool:
    """Whether a pattern fits the full name of a parameter, or of a module that it is in."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[: end + 1]), pattern) for end in range(len(parts)))


def _joined(graphs: Sequence[Captured], analyses: Sequence[Propagation], residual: bool) -> CouplingGraph:
    """The groups of all analyses; of those that share entries the first stays, but heads go with widths."""
    chosen: list[tuple[Group, int, int]] = []  # with the number of its analysis and its own there
    taken: Taken = {}
    found = [grouping_of(propagation) for propagation in analyses]
    for analysis, (groups, _) in enumerate(found):
        for number, group in enumerate(groups):
            if group.frozen is None and not (analysis and _clashes(group, taken)):
                chosen.append((group, analysis, number))
                _take(group, taken)
    for number, group in enumerate(found[0][0]):
        if group.frozen is not None and not _clashes(group, taken):
            chosen.append((group, 0, number))
    at = {block.tensor: place for place, block in reversed(list(enumerate(analyses[0].blocks)))}
    chosen.sort(key=lambda each: _place(each[0], at))
    final = [np.full(len(groups) + 1, -1, dtype=np.int64) for groups, _ in found]  # the last is for -1
    for place, (_, analysis, number) in enumerate(chosen):
        final[analysis][number] = place
    labellings = [
        replace(labelling, group=places[labelling.group])
        for (_, labelling), places in zip(found, final, strict=True)
    ]
    asked = [_asked(group, residual) for group, *_ in chosen]
    plan = GroupPlan(tuple(_named(_told_apart(_with_lines(asked, graphs)))))
    return CouplingGraph(plan, tuple(graphs), tuple(labellings))


def _place(group: Group, at: Mapping[str, int]) -> tuple[int, int, bool]:
    """The place of the first tensor that computes a group, and the entry there; heads before widths."""
    (tensor, _), entries = min(_made(group).items(), key=lambda item: at[item[0][0]])
    return at[tensor], min(entries), group.kind != "heads"


def _clashes(group: Group, taken: Taken) -> bool:
    """Whether a group shares entries with one there is, and the two do not cut heads both ways."""
    for key, entries in _made(group).items():
        for other, others in taken.get(key, ()):
            across = {group.kind, other.kind} == {"heads", "head width"} and group.members != other.members
            if not across and not entries.isdisjoint(others):
                return True
    return False


def _take(group: Group, taken: Taken) -> None:
    for key, entries in _made(group).items():
        taken.setdefault(key, []).append((group, entries))


def _made(group: Group) -> dict[tuple[str, int], set[int]]:
    """The entries that compute the units; those of all members where none is known to."""
    return {
        (member.tensor, member.dim): {index for unit in member.indices for index in unit}
        for member in group.producers
    }


def _asked(group: Group, residual: bool) -> Group:
    if group.kind == "residual stream" and group.frozen is None and not residual:
        return replace(group, frozen=_STREAM)
    return group


def _with_lines(groups: Sequence[Group], graphs: Sequence[Captured]) -> list[Group]:
    """Groups whose reasons name a line: that where the network's code calls what makes them, if no other."""
    lines: dict[str, str] = {}
    for graph in graphs:
        for node in graph.placeholders:
            place = next(filter(None, map(place_in, node.users)), None)
            if node.name in graph.tensors and place is not None:
                lines.setdefault(graph.tensors[node.name], short(place))

    def named(group: Group) -> Group:
        if group.frozen is None or names_a_line(group.frozen):
            return group
        return replace(group, frozen=group.frozen + lines.get(group.members[0].tensor, ""))

    return list(map(named, groups))


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Where there is attention, hidden layers are those of its MLPs, however their inputs are laid out."""
    if not any(group.kind == "heads" for group in groups):
        return list(groups)
    kinds = {"neurons": "MLP width"}
    return [replace(group, kind=kinds.get(group.kind, group.kind)) for group in groups]


def _named(groups: Sequence[Group]) -> list[Group]:
    """Groups with names of their own: the kind is added where a name is met twice, then a number."""
    count = Counter(group.name for group in groups)
    first = [group.name if count[group.name] == 1 else f"{group.name} ({group.kind})" for group in groups]
    seen: Counter[str] = Counter()
    names = []
    for name in first:
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return [replace(group, name=name) for group, name in zip(groups, names, strict=True)]
