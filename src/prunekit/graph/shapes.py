"""What operators give for tensors without data."""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor

# their results are like their first argument, or like what is broadcast; PyTorch works that out in its own
# Python code, which takes up to milliseconds and loads its compiler first
_ALIKE = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm"})
_ENTRY_BY_ENTRY = (
    frozenset({"add", "sub", "mul", "div", "neg", "clamp", "exp", "sqrt", "rsqrt"})
    | {"sigmoid", "tanh", "softplus"}
    | {"relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "mish"}
    | {"hardtanh", "hardswish", "hardsigmoid"}
)
_POOLS = {"adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2, "adaptive_avg_pool3d": 3}


def shapes(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives for tensors on the meta device, without anything written to them.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: likewise.
    """
    if func._schema.is_mutable:
        return args[0]
    name = func.overloadpacket.__name__
    if name in _ALIKE and args[0].is_floating_point():
        return torch.empty_like(args[0])
    if name in _ENTRY_BY_ENTRY:
        given = [each for each in chain(args, kwargs.values()) if isinstance(each, Tensor)]
        if _plain(given):
            shape = given[0].shape
            if any(each.shape != shape for each in given):
                shape = torch.broadcast_shapes(*(each.shape for each in given))  # type: ignore[no-untyped-call]
            return given[0].new_empty(shape)
    if (
        name == "linear"
        and _plain([each for each in args if each is not None])
        and args[0].shape[-1] == args[1].shape[-1]
    ):
        return args[0].new_empty((*args[0].shape[:-1], len(args[1])))
    if name in _POOLS:
        return args[0].new_empty((*args[0].shape[: -_POOLS[name]], *args[1]))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    return func(*args, **kwargs)


def _plain(tensors: list[Tensor]) -> bool:
    """Whether all are numbers of one real type, in the order of their axes, so that the result is, too."""
    first = tensors[0]
    return first.is_floating_point() and all(
        each.dtype == first.dtype and each.dim() and each.is_contiguous()
        for each in tensors
        if each is not None
    )
