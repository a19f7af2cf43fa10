"""Other inputs than the given ones, of the same shapes, on which a network is tried."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def drawn(call: Arguments) -> Arguments:
    """Random arguments of the same shapes: numbers of the same mean and spread, integers of one range."""
    generator = torch.Generator().manual_seed(0)  # not the user's

    def replaced(value: Tensor) -> Tensor:
        if not value.numel() or value.dtype == torch.bool:
            return value
        if not value.is_floating_point():
            low, high = int(value.min()), int(value.max())
            return torch.randint(low, high + 1, value.shape, generator=generator).to(value)
        exactly = value.double().cpu().nan_to_num(posinf=0, neginf=0)
        spread = float(exactly.std(correction=0)) or 1.0
        noise = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        return (exactly.mean() + spread * noise).to(value)

    return pytree.tree_map_only(Tensor, replaced, call)


def shuffled(call: Arguments) -> Arguments:
    """As `drawn`, but the integers are the given ones in another order: lengths keep their largest."""
    generator = torch.Generator().manual_seed(0)

    def replaced(given: Any, random: Any) -> Any:
        if not isinstance(given, Tensor) or given.is_floating_point() or given.dtype == torch.bool:
            return random
        order = torch.randperm(given.numel(), generator=generator).to(given.device)
        return given.flatten()[order].view(given.shape)

    return pytree.tree_map(replaced, call, drawn(call))


def negated(call: Arguments) -> Arguments:
    """The given arguments, their real numbers with the other sign."""
    return pytree.tree_map_only(Tensor, lambda given: -given if given.is_floating_point() else given, call)


def variations(call: Arguments) -> list[Arguments]:
    """Other arguments of every kind, each once: integers cannot be negated, and real numbers not shuffled."""
    found = [call]
    for make in (negated, drawn, shuffled):
        other = make(call)
        if not any(_same(other, each) for each in found):
            found.append(other)
    return found[1:]


def _same(one: Arguments, other: Arguments) -> bool:
    """Whether two calls, of the same form, have the same values in their tensors."""
    leaves = zip(pytree.tree_leaves(one), pytree.tree_leaves(other), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in leaves if isinstance(mine, Tensor))
