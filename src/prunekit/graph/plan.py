"""From a network and example inputs to the plan of what is coupled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from prunekit.errors import InputError
from prunekit.graph.analysis import PARAMETRIZED, Propagation, analysed
from prunekit.graph.capture import Inputs, captured
from prunekit.graph.captured import Captured
from prunekit.graph.grouping import Grouping, grouping_of
from prunekit.graph.groups import INPUT, CouplingGraph, Features, Group, Layer, Plan, features_of
from prunekit.graph.propagator import SplitPolicy
from prunekit.targets import unwrap

_OTHER_POLICIES: tuple[SplitPolicy, ...] = ("first", "last")
# for each axis of a tensor the groups that its entries compute
Taken = dict[tuple[str, int], list[tuple[Group, set[int]]]]
_STREAM = "the residual stream stays unless it is asked for (residual=True)"


def groups(
    model: nn.Module, example_inputs: Inputs, *, ignore: Sequence[str] = (), residual: bool = False
) -> Plan:
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
    return traced(model, example_inputs, ignore=ignore, residual=residual).plan


def traced(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    ignore: Sequence[str] = (),
    residual: bool = False,
    inputs: bool = False,
) -> CouplingGraph:
    """The same plan, with the graphs and the labels of all their nodes; raises as `groups` does.

    With `inputs` the features that the network reads are a group, too, where it has one input of real numbers
    and single features can be left out.
    """
    model = unwrap(model)
    ignored = _ignored(model, ignore)
    graphs = captured(model, example_inputs)
    for features in features_of(graphs[0]) if inputs else ():
        found = _joined(graphs, _analyses(model, graphs, ignored, features), residual)
        if any(group.name == INPUT and group.frozen is None for group in found.plan.groups):
            return replace(found, features=features)
    return _joined(graphs, _analyses(model, graphs, ignored), residual)


def _analyses(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    features: Features | None = None,
) -> list[tuple[Propagation, Grouping]]:
    """One analysis for each way to cut axes that makes a difference, the one with most units first."""
    found = [analysed(model, graphs, ignored, policy="most", features=features)]
    if any(choice.site[-1] != "groups" for choice in found[0].propagator.choices):
        for policy in _OTHER_POLICIES:
            other = analysed(model, graphs, ignored, policy=policy, features=features)
            if all(_ways(other) != _ways(before) for before in found):
                found.append(other)
    return [(propagation, grouping_of(propagation)) for propagation in found]


def _ways(propagation: Propagation) -> set[tuple[object, int]]:
    return {(choice.site, choice.candidate) for choice in propagation.propagator.choices}


def _ignored(model: nn.Module, patterns: Sequence[str]) -> dict[str, str]:
    if isinstance(patterns, str):
        raise InputError(f"ignore must be a list of names or patterns, not the text {patterns!r}")
    names = [name for name, _ in [*model.named_parameters(), *model.named_buffers()]]
    found = {name: PARAMETRIZED for name in names if ".parametrizations." in f".{name}"}
    for pattern in patterns:
        hit = [name for name in names if fnmatchcase(name, pattern) or _below(name, pattern)]
        if not hit:
            raise InputError(f"ignore: {pattern!r} matches no module and no parameter of the network")
        found.update(dict.fromkeys(hit, "it is to be left as it is (ignore)"))
    return found


def _below(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:count]), pattern) for count in range(1, len(parts)))


def _joined(
    graphs: Sequence[Captured], found: Sequence[tuple[Propagation, Grouping]], residual: bool
) -> CouplingGraph:
    """The groups of all analyses; of those that share entries the first stays, but heads go with widths."""
    groups: list[Group] = []
    numbers: dict[tuple[int, int], int] = {}
    taken: Taken = {}
    for analysis, (_, part) in enumerate(found):
        for number, group in enumerate(part.groups):
            if group.frozen is None and not (analysis and _clashes(group, taken)):
                numbers[analysis, number] = len(groups)
                groups.append(group)
                _take(group, taken)
    for number, group in enumerate(found[0][1].groups):
        if group.frozen is not None and not _clashes(group, taken):
            numbers[0, number] = len(groups)
            groups.append(group)
    order = _in_order(groups, [block.tensor for block in found[0][0].blocks])
    place = {number: position for position, number in enumerate(order)}
    groups = _named(_told_apart([_asked(groups[number], residual) for number in order]))
    layers = []
    for analysis, (propagation, part) in enumerate(found):
        final = np.full(len(part.groups) + 1, -1, dtype=np.int64)
        for number in range(len(part.groups)):
            final[number] = place.get(numbers.get((analysis, number), -1), -1)
        root = propagation.classes.root
        layers.append(Layer(propagation.nodes, final[part.group_of][root], part.unit_of[root]))
    return CouplingGraph(Plan(tuple(groups)), tuple(graphs), tuple(layers))


def _in_order(groups: Sequence[Group], tensors: Sequence[str]) -> list[int]:
    """Numbers of the groups by the first tensor that computes them, heads before their widths."""
    at = {tensor: position for position, tensor in reversed(list(enumerate(tensors)))}

    def place(number: int) -> tuple[int, int, bool]:
        key, entries = min(_made(groups[number]).items(), key=lambda item: at[item[0][0]])
        return at[key[0]], min(entries), groups[number].kind != "heads"

    return sorted(range(len(groups)), key=place)


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
    producers = [member for member in group.members if member.role == "producer"]
    return {
        (member.tensor, member.dim): {index for unit in member.indices for index in unit}
        for member in producers or group.members
    }


def _asked(group: Group, residual: bool) -> Group:
    if group.kind == "residual stream" and group.frozen is None and not residual:
        return replace(group, frozen=_STREAM)
    return group


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
