"""How the entries of results lie in memory, as PyTorch's operators on the processor lay them out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def entry_by_entry(tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shape and strides of what is computed entry by entry from tensors of shapes that go together.

    The order of axes in memory is that of the first tensor that tells two axes apart. See
    `TensorIteratorBase::compute_fast_setup_type` and `reorder_dimensions` in PyTorch.

    Args:
        tensors: in the order of the arguments.

    Raises:
        ValueError: where their shapes do not go together.
    """
    shape = tuple(tensors[0].shape)
    if any(each.shape != shape for each in tensors):
        shape = broadcast(*(each.shape for each in tensors))
    elif all(each.is_contiguous() for each in tensors):
        return shape, in_order(shape, range(len(shape)))
    elif all(_is_channels_last(each) for each in tensors):
        return shape, channels_last(shape)
    elif all(each.stride() == tensors[0].stride() for each in tensors) and _is_dense(tensors[0]):
        return shape, tensors[0].stride()
    return shape, in_order(shape, _axes_in_memory(shape, tensors))


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that tensors of these shapes are repeated to; PyTorch's own function loads its compiler.

    Raises:
        ValueError: where they do not go together.
    """
    return tuple(np.broadcast_shapes(*map(tuple, shapes)))


def like(tensor: Tensor) -> Tensor:
    """A tensor without data of the same shape, type and order of axes in memory, as `empty_like` gives it."""
    shape, strides = entry_by_entry([tensor])
    return empty(tensor, shape, strides)


def empty(like: Tensor, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    """A tensor without data and of the same type."""
    return like.new_empty_strided(tuple(shape), tuple(strides))


def suggested(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """A tensor without data and of the same type with channels last where those of a given tensor are."""
    return (
        empty(tensor, shape, channels_last(shape))
        if _seems_channels_last(tensor)
        else tensor.new_empty(tuple(shape))
    )


def _seems_channels_last(tensor: Tensor) -> bool:
    """By its strides alone, see `is_channels_last_strides_2d` in PyTorch."""
    rank, strides = tensor.dim(), tensor.stride()
    if rank not in _CHANNELS_LAST or not strides[1]:
        return False
    least = 0
    for axis in (1, *range(rank - 1, 1, -1), 0):
        if not tensor.shape[axis] or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * tensor.shape[axis]
    return True


def channels_last(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides with which the second axis is the last in memory."""
    return in_order(shape, (0, *range(2, len(shape)), 1))


def in_order(shape: Sequence[int], axes: Sequence[int]) -> tuple[int, ...]:
    """Strides without gaps for axes that lie in memory in this order, the last one closest together."""
    strides, step = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


def _is_channels_last(tensor: Tensor) -> bool:
    form = _CHANNELS_LAST.get(tensor.dim())
    return form is not None and tensor.is_contiguous(memory_format=form)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill their memory without gaps, each in a place of its own."""
    wide = [axis for axis, size in enumerate(tensor.shape) if size != 1]
    order = sorted(wide, key=lambda axis: -tensor.stride()[axis])
    found = in_order(tensor.shape, order)
    return all(found[axis] == tensor.stride()[axis] for axis in wide)


def _axes_in_memory(shape: tuple[int, ...], tensors: Sequence[Tensor]) -> list[int]:
    """The axes from the one that is farthest apart to the closest; insertion sort, as ties do not chain."""
    every = [_strides_within(shape, each) for each in tensors]
    order = list(reversed(range(len(shape))))
    for start in range(1, len(order)):
        place = start
        for before in reversed(range(start)):
            swap = _swapped(shape, every, order[before], order[place])
            if swap > 0:
                order[before], order[place] = order[place], order[before]
                place = before
            elif swap < 0:
                break
    return order[::-1]


def _strides_within(shape: tuple[int, ...], tensor: Tensor) -> list[int]:
    """The strides of a tensor seen in a larger shape, 0 along axes that it is repeated along."""
    missing = len(shape) - tensor.dim()
    own = zip(tensor.shape, tensor.stride(), shape[missing:], strict=True)
    return [0] * missing + [0 if size == 1 != whole else stride for size, stride, whole in own]


def _swapped(shape: tuple[int, ...], every: Sequence[Sequence[int]], inner: int, outer: int) -> int:
    """1 where the axis that counts as inner lies outside, -1 where it does not, 0 where nothing tells."""
    for strides in every:
        if not strides[inner] or not strides[outer]:
            continue
        if strides[inner] != strides[outer]:
            return 1 if strides[inner] > strides[outer] else -1
        if shape[inner] > shape[outer]:
            return 1
    return 0
