"""From values on parameters to values per unit: pooled over a unit's slices, then combined over members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph.activation_taps import (
    Call,
    FeatureMap,
    Place,
    calls_of,
    feature_maps,
    inputs,
    places,
    silences,
)
from prunekit.graph.chain import Chain
from prunekit.graph.chain_view import chain_view
from prunekit.graph.coupling_graph import INPUT, CouplingGraph, Group, GroupPlan, Member
from prunekit.graph.pooling import Combine, Pool
from prunekit.targets import unwrap

Scored = Literal["producers", "all"]
"""Which members are looked at: those that make the unit, or all that go with it."""


class Prepared(dict[object, Any]):
    """What was worked out of a network's graphs, by keys of who did it; a copy of the network starts anew."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared()


@dataclass(frozen=True)
class Coupled:
    """Coupled groups whose units are counted, and how what their members say is put together.

    Attributes:
        model: the network, without wrappers.
        traced: its plan with its graphs.
        names: of the groups.
        example_inputs: on which the network was traced.
        combine: over members, or over places where a unit's outputs appear.
        scored: which members are looked at.
    """

    model: nn.Module
    traced: CouplingGraph
    names: tuple[str, ...]
    example_inputs: Inputs
    combine: Combine = "mean"
    scored: Scored = "producers"

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups."""
        return tuple(self.traced.plan.group(name) for name in self.names)

    def group(self, name: str) -> Group:
        """The group of that name."""
        return self.traced.plan.group(name)

    def members(self, group: Group) -> tuple[Member, ...]:
        """The members that are looked at."""
        return group.producers if self.scored == "producers" else group.members

    def off(self, group: Group) -> Tensor:
        """(units,) flags: nothing reads the unit.

        Where no layer reads any, or statistics run over them, nothing makes it or goes along, either.
        """
        own = dict(self.model.named_parameters())
        read = [member for member in group.consumers if member.tensor in own]
        entries = [
            of_units(own[member.tensor].detach().abs(), member, "max").nan_to_num(0.0)
            for member in (group.members if group.normalised else read or group.members)
            if member.tensor in own
        ]
        return torch.stack(entries).amax(0) == 0

    def places(self, group: Group) -> tuple[Place, ...]:
        """Where the units' outputs appear; see `places`."""
        return places(self._calls, self.traced, group)

    def inputs(self, group: Group) -> tuple[Place, ...]:
        """What the layers that read the units take; see `inputs` of the taps."""
        return inputs(self._calls, self.traced, group)

    def silences(self, group: Group) -> tuple[Place, ...]:
        """Where the units' outputs may be zero; see `silences`."""
        return silences(self._calls, self.traced, group)

    def feature_maps(self, group: Group) -> tuple[FeatureMap, ...]:
        """Where the units' outputs appear before any pooling; see `feature_maps`."""
        return feature_maps(self._calls, self.traced, group)

    @cached_property
    def chain(self) -> Chain | None:
        """The network as a path of layers, on which some things are faster; None where it is none."""
        try:
            chain = chain_view(self.model, self.traced, inputs=INPUT in self.names)
        except ModelError:
            return None
        units = {group.name: group.units for group in chain.groups}
        return chain if all(units.get(group.name) == group.units for group in self.groups) else None

    @cached_property
    def prepared(self) -> Prepared:
        """What was worked out of the graphs, as for runs on so many examples."""
        return Prepared()

    @cached_property
    def _calls(self) -> list[Call]:
        return calls_of(self.model, self.traced)

    def together(self, values: Sequence[Tensor]) -> Tensor:
        """(units,) float64 from the values of all members, NaN where a member has nothing of a unit.

        Units that no member has anything of count as 0.
        """
        stacked = torch.stack(list(values))
        there = ~stacked.isnan()
        if self.combine == "max":
            found = stacked.masked_fill(~there, -torch.inf).amax(0)
        elif self.combine == "first":
            first = there.long().argmax(0, keepdim=True)
            found = stacked.gather(0, first).squeeze(0)
        else:
            found = stacked.masked_fill(~there, 0).sum(0)
            if self.combine == "mean":
                found = found / there.sum(0).clamp(min=1)
        return torch.where(there.any(0), found, 0.0)

    def pooled(self, values: Mapping[str, Tensor], group: Group, pool: Pool) -> Tensor:
        """(units,) float64 from numbers on parameters.

        Args:
            values: by full name, of the parameters' shapes; members that it does not hold are left out.
            group: the group.
            pool: within each member.

        Raises:
            InputError: where no member is among them.
        """
        members = [member for member in self.members(group) if member.tensor in values]
        if not members:
            raise InputError(f"the units of {group.name!r} have no weights that make them to be scored by")
        if any(bool(values[member.tensor].isnan().any()) for member in members):
            # not to be taken for units that a member has nothing of
            return torch.full((group.units,), torch.nan, dtype=torch.float64)
        return self.together([of_units(values[member.tensor], member, pool) for member in members])


def entries(member: Member) -> tuple[Tensor, Tensor]:
    """The entries along the member's dimension, unit by unit, and the unit that each belongs to."""
    index = torch.tensor([entry for unit in member.indices for entry in unit], dtype=torch.int64)
    sizes = torch.tensor([len(unit) for unit in member.indices], dtype=torch.int64)
    return index, torch.arange(len(sizes)).repeat_interleave(sizes)


def of_units(values: Tensor, member: Member, pool: Pool) -> Tensor:
    """(units,) float64 from numbers on one parameter; NaN for units without entries."""
    index, unit = (each.to(values.device) for each in entries(member))
    rows = values.double().movedim(member.dim, 0).flatten(1) if values.dim() > 1 else values.double()[:, None]
    each = {
        "sum": lambda: rows.sum(1),
        "mean": lambda: rows.mean(1),
        "l2": lambda: rows.square().sum(1),
        "max": lambda: rows.amax(1),
    }[pool]()
    return over_entries(each[index], unit, len(member.indices), pool)


def over_entries(each: Tensor, unit: Tensor, units: int, pool: Pool) -> Tensor:
    """(..., units) from (..., entries); for `l2` these are squares. NaN for units without entries."""
    count = torch.bincount(unit, minlength=units)
    found = each.new_zeros(*each.shape[:-1], units)
    if pool == "max":
        found.scatter_reduce_(-1, unit.expand_as(each), each, "amax", include_self=False)
    else:
        found.index_add_(-1, unit, each)
    if pool == "mean":
        found = found / count.clamp(min=1)
    elif pool == "l2":
        found = found.sqrt()
    return found.masked_fill(count == 0, torch.nan)


def group_outgoing_norms(found: Coupled, name: str, order: int) -> Tensor:
    """(units,) float64: L1 or L2 norms of the weights that read the units, combined over the layers that do.

    Raises:
        InputError: where no layer reads them.
    """
    own, group = dict(found.model.named_parameters()), found.group(name)
    consumers = [member for member in group.consumers if member.tensor in own]
    if not consumers:
        raise InputError(
            f"no layer of its own reads the units of {name!r}, so they have no outgoing weights: name the "
            "group in `ignore`"
        )
    pool: Pool = "sum" if order == 1 else "l2"
    return found.together([of_units(own[each.tensor].detach().abs(), each, pool) for each in consumers])


def group_norm_scales(found: Coupled, name: str) -> Tensor:
    """(units,) float64: |γ| of the batch norms that go with the units, the mean over a unit's channels.

    Raises:
        InputError: where there is no batch norm that scales.
    """
    own, group = dict(found.model.named_parameters()), found.group(name)
    scales = [member for member in group.members if member.tensor in own and _is_scale(found.model, member)]
    if not scales:
        raise InputError(
            f"the units of {name!r} have no batch norm with a scale, which the score 'norm_scale' looks at: "
            "name the group in `ignore`"
        )
    return found.together([of_units(own[each.tensor].detach().abs(), each, "mean") for each in scales])


def l1_norms(tensors: Mapping[str, Tensor], group: Group) -> Tensor:
    """(units,) float64: the L1 norms of what makes the units.

    Args:
        tensors: parameters and buffers by full name.
        group: of the units.

    Raises:
        ModelError: for weights that are no finite numbers.
    """
    norms = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.role == "producer":
            tensor = tensors[member.tensor].detach().unsqueeze(-1)
            others = [dim for dim in range(tensor.dim()) if dim != member.dim]
            # in the weights' own precision, which takes a fifth of the time of `of_units`
            exactly = torch.promote_types(tensor.dtype, torch.float32)
            each = tensor.abs().sum(others, dtype=exactly).double().cpu()
            if not bool(each.isfinite().all()):
                raise ModelError(f"{member.tensor} has weights that are no finite numbers")
            index, unit = entries(member)
            norms.index_add_(0, unit, each[index])
    return norms


def unit_rows(name: str, weight: Tensor, member: Member) -> tuple[Tensor, Tensor]:
    """(units there, numbers) all weights of each unit in one parameter, and (units,) flags of those it has.

    Args:
        name: of the group, for the error.
        weight: the parameter.
        member: which of its slices belong to which unit.

    Raises:
        InputError: where units have different numbers of weights.
    """
    if len({len(unit) for unit in member.indices if unit}) > 1:
        raise InputError(
            f"the units of {name!r} have different numbers of weights in {member.tensor!r}, so they have no "
            "distances: name the group in `ignore`"
        )
    there = torch.tensor([bool(unit) for unit in member.indices], device=weight.device)
    index = torch.tensor([list(unit) for unit in member.indices if unit], device=weight.device)
    return weight.movedim(member.dim, 0)[index].flatten(1), there


def _is_scale(model: nn.Module, member: Member) -> bool:
    place, _, short = member.tensor.rpartition(".")
    return short == "weight" and isinstance(model.get_submodule(place), nn.modules.batchnorm._BatchNorm)


def parameters_per_unit(model: nn.Module, plan: GroupPlan) -> dict[str, float]:
    """For each group how many parameters go with one of its units, on average, nothing else being taken out.

    Buffers do not count. Where a unit lies on two axes of one parameter, what they share counts once.

    Args:
        model: the network.
        plan: its groups.
    """
    shapes = {name: parameter.shape for name, parameter in unwrap(model).named_parameters()}
    return {group.name: _mean(group, shapes) for group in plan.groups}


def _mean(group: Group, shapes: Mapping[str, torch.Size]) -> float:
    axes: dict[str, dict[int, tuple[tuple[int, ...], ...]]] = {}
    for member in group.members:
        if member.tensor in shapes:
            axes.setdefault(member.tensor, {})[member.dim] = member.indices
    lost = 0
    for name, found in axes.items():
        for unit in range(group.units):
            left = list(shapes[name])
            for dim, indices in found.items():
                left[dim] -= len(indices[unit])
            lost += shapes[name].numel() - torch.Size(left).numel()
    return lost / group.units
