"""The operators that a saved graph may hold, each overload by its exact name."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunekit.graph.ops import OPERATORS

OVERLOADS = frozenset(
    f"{record.name}.{overload}" for record in OPERATORS.values() for overload in record.saved
)
"""The names of the overloads, as `packet.overload`."""


def batch_norm_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm over the batch's own statistics: (output, new running mean, new running variance).

    `aten.batch_norm` writes the running statistics into its arguments; here they are results.

    Args:
        x: (N, C, ...) inputs.
        weight: (C,) scale.
        bias: (C,) shift.
        mean: (C,) running mean.
        variance: (C,) running variance.
        momentum: the share of the batch's statistics in the new running ones.
        eps: added to the variance.
    """
    new_mean, new_variance = mean.detach().clone(), variance.detach().clone()
    out = torch.ops.aten.batch_norm.default(
        x, weight, bias, new_mean, new_variance, True, momentum, eps, False
    )
    return out, new_mean, new_variance


def bernoulli_like(x: Tensor, p: float = 0.5) -> Tensor:
    """Zeros and ones of the shape and dtype of `x`, ones with probability `p` in [0, 1].

    `aten.bernoulli.p` draws the same, but cannot be run without data.
    """
    return torch.zeros_like(x).bernoulli_(p)


_OWN: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "bernoulli_like": bernoulli_like,
    "batch_norm_training": batch_norm_training,
}
_NAMES = {function: name for name, function in _OWN.items()}


def operator_name(target: Any) -> str | None:
    """The name under which an operator is saved; None for one that must not be."""
    if isinstance(target, torch._ops.OpOverload):
        name = f"{target.overloadpacket.__name__}.{target._overloadname}"
        return name if target.namespace == "aten" and name in OVERLOADS else None
    return _NAMES.get(target) if callable(target) else None


def named_operator(name: Any) -> Callable[..., Any]:
    """The operator of that name.

    Raises:
        ValueError: for one that is not among those allowed, or that this PyTorch does not have.
    """
    if isinstance(name, str) and name in _OWN:
        return _OWN[name]
    if not isinstance(name, str) or name not in OVERLOADS:
        raise ValueError(f"{str(name)[:60]!r} is no operator that a saved graph may hold")
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"this PyTorch has no operator {name!r}")
    return found


def argument_types(target: Callable[..., Any]) -> dict[str, str]:
    """The names of the arguments that an operator takes, with their types in its schema."""
    schema = getattr(target, "_schema", None)
    return {} if schema is None else {each.name: str(each.real_type) for each in schema.arguments}
