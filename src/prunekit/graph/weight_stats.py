"""Figures of the units of coupled groups that are read off the weights: outgoing norms, scales, rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.groups import Group, Member, Plan
from prunekit.graph.members import Coupled, Pool, of_units
from prunekit.targets import unwrap


def group_outgoing_norms(found: Coupled, name: str, order: int) -> Tensor:
    """(units,) float64: L1 or L2 norms of the weights that read the units, combined over the layers that do.

    Raises:
        InputError: where no layer reads them.
    """
    own, group = dict(found.model.named_parameters()), found.group(name)
    readers = [member for member in group.members if member.role == "consumer" and member.tensor in own]
    if not readers:
        raise InputError(
            f"no layer of its own reads the units of {name!r}, so they have no outgoing weights: name the "
            "group in `ignore`"
        )
    pool: Pool = "sum" if order == 1 else "l2"
    return found.together([of_units(own[each.tensor].detach().abs(), each, pool) for each in readers])


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


def parameters_per_unit(model: nn.Module, plan: Plan) -> dict[str, float]:
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
