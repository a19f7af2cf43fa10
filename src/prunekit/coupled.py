"""Units of coupled groups, of any network that PyTorch can export, as what a recipe counts and removes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.elements import Elements
from prunekit.errors import InputError, ModelError
from prunekit.graph import (
    Combine,
    Coupled,
    Group,
    Scored,
    alike,
    makers,
    of_units,
    smaller,
    traced,
    unit_masks,
)
from prunekit.graph.capture import Inputs
from prunekit.masks import Masks
from prunekit.targets import Target, check_plain, matches, owner_of, unwrap


@dataclass(frozen=True)
class Groups(Elements):
    """Filters, neurons, heads, head widths and streams, each with all that is coupled to it.

    Attributes:
        found: the groups, with the network whose weights say which units are off already.
    """

    found: Coupled

    @property
    def coupled(self) -> Coupled:
        """The groups."""
        return self.found

    @property
    def parameters(self) -> list[str]:
        """The parameters that are scored; buffers are none."""
        own = dict(self.found.model.named_parameters())
        members = (member for group in self.found.groups for member in self.found.members(group))
        return list(dict.fromkeys(member.tensor for member in members if member.tensor in own))

    def all_kept(self, model: nn.Module) -> Masks:
        """One flag per unit."""
        device = next(unwrap(model).parameters()).device
        return Masks(
            {target.name: torch.ones(target.size, dtype=torch.bool, device=device) for target in self.targets}
        )

    def masks(self, model: nn.Module, kept: Masks) -> Masks:
        """All slices of parameters that go with the units: what makes them, goes along and reads them."""
        return unit_masks(model, self.found.traced.plan, kept, allow_empty=True)

    def smaller(self, model: nn.Module, kept: Masks) -> nn.Module:
        """The units are taken out of a copy."""
        return smaller(model, self.found.traced, kept, self.found.example_inputs)

    def gone(self, name: str, weight: Tensor | None, kept: Masks) -> Tensor:
        """Those that nothing reads, or that nothing makes where no layer reads them, count as removed."""
        own, group = dict(self.found.model.named_parameters()), self.found.group(name)
        members = [member for member in group.members if member.role == "consumer" and member.tensor in own]
        read = [
            of_units(own[member.tensor].detach().abs(), member, "max")
            for member in members or makers(group)
            if member.tensor in own
        ]
        return ~kept[name] | (torch.stack(read).nan_to_num(0.0).amax(0) == 0)

    def shielded(self, name: str, scores: Tensor) -> Tensor:
        """The best unit of those that reach into the same tensors: none is left without."""
        shielded = scores.double().clone()
        for units in alike(self.found.group(name)):
            best = units[int(scores[units].argmax())]
            shielded[best] = torch.inf
        return shielded


def find_groups(
    model: nn.Module,
    targets: Sequence[str] | None,
    ignore: Sequence[str],
    *,
    example_inputs: Inputs | None,
    kinds: Collection[str] | None,
    residual: bool,
    combine: Combine,
    scored: Scored,
) -> Groups:
    """The coupled groups that the patterns choose.

    A pattern fits a group by the group's name, or by the name or type of a layer that makes its units, or of
    that layer's parameter.

    Args:
        model: the network.
        targets: patterns, as of `find_targets`; None for all groups.
        ignore: patterns of groups that stay.
        example_inputs: what the network can be run on.
        kinds: of the groups; None for all.
        residual: whether the widths of residual streams are groups.
        combine: see `Coupled`.
        scored: see `Coupled`.

    Raises:
        InputError: without example inputs, or if a pattern matches nothing.
        ModelError: if the network cannot be exported, or nothing is left that can be pruned, with reasons.
    """
    if example_inputs is None:
        raise InputError(
            "the shape 'group' reads what is coupled from a run of the network: give data, or example_inputs"
        )
    model = unwrap(model)
    found = traced(model, example_inputs, residual=residual)
    names = {group.name: _names(model, group) for group in found.plan.groups}
    for pattern in (*(targets or ()), *ignore):
        if not any(_fits(pattern, each) for each in names.values()):
            raise InputError(f"{pattern!r} matches no group; groups are: {', '.join(names) or 'none'}")
    chosen = [
        group
        for group in found.plan.groups
        if (targets is None or any(_fits(pattern, names[group.name]) for pattern in targets))
        and not any(_fits(pattern, names[group.name]) for pattern in ignore)
        and (kinds is None or group.kind in kinds)
    ]
    left = [group for group in chosen if group.frozen is None]
    if not left:
        reasons = "; ".join(f"{group.name} ({group.kind}): {group.frozen}" for group in chosen)
        there = ", ".join(sorted({group.kind for group in found.plan.prunable}))
        raise ModelError(
            f"the recipe chooses no group that can be pruned: {reasons or 'none fits'}; "
            f"kinds that can be pruned are: {there or 'none'}"
        )
    elements = Groups(
        tuple(
            Target(group.name, group.name, "units", (group.units,), least=len(alike(group))) for group in left
        ),
        Coupled(model, found, tuple(group.name for group in left), example_inputs, combine, scored),
    )
    check_plain(model, [_target(model, name) for name in elements.parameters])
    return elements


def _names(model: nn.Module, group: Group) -> tuple[set[str], set[str]]:
    """The names that a group is known by, and the types of the layers that make its units."""
    names: set[str] = {group.name}
    types: set[str] = set()
    for member in makers(group):
        layer = member.tensor.rpartition(".")[0]
        names.update((member.tensor, layer))
        types.update(kind.__name__ for kind in type(owner_of(model, member.tensor)).__mro__)
    return names, types


def _fits(pattern: str, known: tuple[set[str], set[str]]) -> bool:
    names, types = known
    return pattern in types or any(pattern == name or matches(pattern, name) for name in names)


def _target(model: nn.Module, name: str) -> Target:
    owner = owner_of(model, name)
    return Target(name, name.rpartition(".")[0], type(owner).__name__, tuple(model.get_parameter(name).shape))
