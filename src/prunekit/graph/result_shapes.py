"""The shapes of what operators give for tensors without data."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
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
    if name in _WINDOWS and not kwargs and _plain([each for each in args[:3] if isinstance(each, Tensor)]):
        found = _WINDOWS[name](*args)
        if found is not None:
            return args[0].new_empty(found)
    if name == "cat" and not kwargs and _laid_out(args[0]):
        found = _joined(*args)
        if found is not None:
            return args[0][0].new_empty(found)
    if name in _POOLS:
        return args[0].new_empty((*args[0].shape[: -_POOLS[name]], *args[1]))
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    return func(*args, **kwargs)


def _plain(tensors: list[Tensor]) -> bool:
    """Whether all are numbers of one real type, in the order of their axes, so that the result is, too."""
    first = tensors[0]
    return first.is_floating_point() and all(
        each.dtype == first.dtype and each.dim() and each.is_contiguous() for each in tensors
    )


def _laid_out(tensors: list[Tensor]) -> bool:
    """Whether all are of one real type, and give a tensor in the order of its axes one after the other."""
    first = tensors[0]
    return first.is_floating_point() and all(
        each.dtype == first.dtype and (each.dim() < 4 or each.is_contiguous()) for each in tensors
    )


def _joined(tensors: list[Tensor], dim: int = 0) -> tuple[int, ...] | None:
    """The shape of tensors one after the other; None where PyTorch is to say what does not fit."""
    first = tensors[0].shape
    if not -len(first) <= dim < len(first) or any(each.dim() != len(first) for each in tensors):
        return None
    dim %= len(first)
    others = {(each.shape[:dim], each.shape[dim + 1 :]) for each in tensors}
    whole = sum(each.shape[dim] for each in tensors)
    return (*first[:dim], whole, *first[dim + 1 :]) if len(others) == 1 else None


def _linear(x: Tensor, weight: Tensor, bias: Any = None) -> tuple[int, ...] | None:
    """The shape of the outputs; None where PyTorch is to say what does not fit."""
    return (*x.shape[:-1], len(weight)) if x.shape[-1] == weight.shape[-1] and weight.dim() == 2 else None


def _convolution(
    sides: int,
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    gap: Any = 1,
    groups: int = 1,
) -> tuple[int, ...] | None:
    """Likewise."""
    if x.dim() != sides + 2 or x.shape[1] != weight.shape[1] * groups:
        return None
    places = _places(x, weight.shape[2:], stride, padding, gap)
    return places and (len(x), len(weight), *places)


def _max_pool(
    sides: int, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, gap: Any = 1, ceil: bool = False
) -> tuple[int, ...] | None:
    """Likewise."""
    if ceil or len(kernel) != sides or x.dim() != sides + 2:
        return None
    places = _places(x, kernel, stride or kernel, padding, gap)
    return places and (*x.shape[:2], *places)


def _places(x: Tensor, kernel: Any, stride: Any, padding: Any, gap: Any) -> tuple[int, ...] | None:
    """At how many places a window fits along each of the last axes."""
    sides = len(kernel)
    given = [[each] * sides if isinstance(each, int) else each for each in (stride, padding, gap)]
    if any(isinstance(each, str) or len(each) != sides for each in given):
        return None
    left = [
        size + 2 * pad - gap * (width - 1) - 1
        for size, width, pad, gap in zip(x.shape[-sides:], kernel, *given[1:], strict=True)
    ]
    places = tuple(free // step + 1 for free, step in zip(left, given[0], strict=True))
    return places if min(left) >= 0 else None


_WINDOWS: dict[str, Callable[..., tuple[int, ...] | None]] = {
    "linear": _linear,
    **{f"conv{sides}d": partial(_convolution, sides) for sides in (1, 2, 3)},
    **{f"max_pool{sides}d": partial(_max_pool, sides) for sides in (1, 2, 3)},
}
