"""From a network and example inputs to the plan of what is coupled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
from torch import nn

from prunekit.errors import InputError
from prunekit.structure.coupling.analysis import PARAMETRIZED, Walked, analysed
from prunekit.structure.coupling.assemble import Assembled, assembled
from prunekit.structure.coupling.capture import Captured, Inputs, captured
from prunekit.structure.coupling.groups import Group, Plan
from prunekit.structure.coupling.labels import Ints
from prunekit.structure.coupling.traced import Layer, Traced
from prunekit.targets import unwrap

_STREAM = "the residual stream stays unless it is asked for (residual=True)"


def groups(
    model: nn.Module, example_inputs: Inputs, *, ignore: Sequence[str] = (), residual: bool = False
) -> Plan:
    """Which slices of which parameters and buffers go together, for any network that PyTorch can export.

    The network is exported in evaluation and in training mode; it is not run on data and is left as it was.

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
    model: nn.Module, example_inputs: Inputs, *, ignore: Sequence[str] = (), residual: bool = False
) -> Traced:
    """The same plan, with the exported graphs and the labels of all their nodes; raises as `groups` does."""
    model = unwrap(model)
    ignored = _ignored(model, ignore)
    graphs = captured(model, example_inputs)
    outer = analysed(model, graphs, ignored, inner=False)
    found = [(outer, assembled(outer))]
    if any(choice.place[-1] != "groups" for choice in outer.walker.choices):
        inner = analysed(model, graphs, ignored, inner=True)
        found.append((inner, assembled(inner)))
    return _joined(graphs, found, residual)


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


def _joined(graphs: Sequence[Captured], found: Sequence[tuple[Walked, Assembled]], residual: bool) -> Traced:
    """The groups of all analyses; the same group found twice is one."""
    groups: list[Group] = []
    numbers: dict[frozenset[object], int] = {}
    places: list[Ints] = []
    for _, part in found:
        new = np.full(len(part.groups) + 1, -1, dtype=np.int64)
        for number, group in enumerate(part.groups):
            key = frozenset((member.tensor, member.dim, member.indices) for member in group.members)
            if key not in numbers:
                numbers[key] = len(groups)
                groups.append(group)
            elif groups[numbers[key]].frozen is not None and group.frozen is None:
                groups[numbers[key]] = group
            new[number] = numbers[key]
        places.append(new)
    kept = [number for number, group in enumerate(groups) if not _covered(group, groups)]
    final = np.full(len(groups) + 1, -1, dtype=np.int64)
    final[kept] = np.arange(len(kept))
    layers = tuple(
        Layer(walked.nodes, final[new[part.group_of]][walked.classes.root], part.unit_of[walked.classes.root])
        for (walked, part), new in zip(found, places, strict=True)
    )
    chosen = _told_apart([_asked(groups[number], residual) for number in kept])
    plan = Plan(tuple(_named(chosen)))
    return Traced(plan, tuple(graphs), layers)


def _covered(group: Group, groups: Sequence[Group]) -> bool:
    """Whether a group that is frozen in one analysis can be pruned in another."""
    if group.frozen is None:
        return False
    makes = {(member.tensor, member.dim) for member in group.members if member.role == "producer"}
    return any(
        other is not group
        and (other.frozen is None or other.units > group.units)
        and any((member.tensor, member.dim) in makes for member in other.members if member.role == "producer")
        and _overlap(group, other)
        for other in groups
    )


def _overlap(group: Group, other: Group) -> bool:
    entries = {
        (member.tensor, member.dim): {index for unit in member.indices for index in unit}
        for member in group.members
        if member.role == "producer"
    }
    return any(
        not entries[(member.tensor, member.dim)].isdisjoint(
            index for unit in member.indices for index in unit
        )
        for member in other.members
        if (member.tensor, member.dim) in entries
    )


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
