"""What a unit of a group weighs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from prunekit.graph.groups import Group, Plan
from prunekit.targets import unwrap


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
