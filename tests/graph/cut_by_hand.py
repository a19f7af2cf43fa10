"""Taking units out of a network without any of the code under test: a smaller one is built and filled."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from prunekit.graph import GroupPlan


def gone(plan: GroupPlan, removed: Mapping[str, Collection[int]]) -> dict[tuple[str, int], list[int]]:
    """For each axis of each tensor the entries that go."""
    found: dict[tuple[str, int], set[int]] = {}
    for name, units in removed.items():
        for member in plan.group(name).members:
            here = found.setdefault((member.tensor, member.dim), set())
            here.update(index for unit in units for index in member.indices[unit])
    return {key: sorted(entries) for key, entries in found.items()}


def masked(
    model: nn.Module, plan: GroupPlan, removed: Mapping[str, Collection[int]]
) -> dict[str, torch.Tensor]:
    """The network's state with zeros in all slices of the units."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for (name, dim), entries in gone(plan, removed).items():
        if name in state:
            state[name].index_fill_(dim, torch.tensor(entries, dtype=torch.long), 0.0)
    return state


def shorter(
    model: nn.Module, plan: GroupPlan, removed: Mapping[str, Collection[int]]
) -> dict[str, torch.Tensor]:
    """The network's state without the slices of the units."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for (name, dim), entries in gone(plan, removed).items():
        if name in state:
            kept = [index for index in range(state[name].shape[dim]) if index not in entries]
            state[name] = state[name].index_select(dim, torch.tensor(kept))
    return state


def assert_same(
    model: nn.Module,
    small: nn.Module,
    plan: GroupPlan,
    removed: Mapping[str, Collection[int]],
    inputs: tuple[torch.Tensor, ...],
) -> None:
    """The masked network and a smaller one, built by hand for the new sizes, compute the same."""
    small.load_state_dict(shorter(model, plan, removed))
    model.load_state_dict(masked(model, plan, removed))
    for training in (False, True):
        model.train(training)
        small.train(training)
        with torch.no_grad():
            torch.testing.assert_close(small(*inputs), model(*inputs), rtol=1e-9, atol=1e-9)


def stirred(model: nn.Module) -> nn.Module:
    """Values of their own in all norms and buffers, so that nothing is right by chance."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.2 if "var" in name else torch.randn_like(tensor) * 0.4
    return model
