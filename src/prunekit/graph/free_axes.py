"""Which axes of its inputs a network takes in other sizes: of the examples, of a sequence, of an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.modes import evaluating, untouched

Axis = tuple[int, int]
"""The number of an input, and an axis of it."""


@dataclass(frozen=True)
class FreeAxes:
    """Axes that have other sizes together, and two sizes that a network takes there.

    Attributes:
        axes: of the same size, such as those of the examples in all inputs.
        sizes: two others.
    """

    axes: tuple[Axis, ...]
    sizes: tuple[int, int]

    def at(self, which: int) -> dict[Axis, int]:
        """The sizes of its axes, the first or the second of the others."""
        return dict.fromkeys(self.axes, self.sizes[which])


def with_sizes(inputs: Inputs, sizes: Mapping[Axis, int]) -> Inputs:
    """Inputs of other sizes: their entries are repeated in turn, or some are left out."""
    args, kwargs = arguments(inputs)
    flat, spec = pytree.tree_flatten((args, kwargs))
    for (number, axis), size in sizes.items():
        here = torch.arange(size, device=flat[number].device) % flat[number].shape[axis]
        flat[number] = flat[number].index_select(axis, here)
    args, kwargs = pytree.tree_unflatten(flat, spec)
    return kwargs or args


def free_axes(model: nn.Module, inputs: Inputs) -> list[FreeAxes]:
    """The axes that a network takes in other sizes; it is run in evaluation mode, and left as it was.

    Tried are the axes of one place in all inputs, then all of one size, then each by itself.
    """
    found: list[FreeAxes] = []
    known: set[Axis] = set()
    with evaluating(model), torch.no_grad():
        for axes in _candidates(inputs):
            if known.isdisjoint(axes):
                sizes = _taken(model, inputs, axes)
                if sizes is not None:
                    found.append(FreeAxes(axes, sizes))
                    known.update(axes)
    return found


def sizes_of(inputs: Inputs) -> dict[Axis, int]:
    """The sizes of all axes of all inputs."""
    flat = pytree.tree_leaves(arguments(inputs))
    return {
        (number, axis): size
        for number, value in enumerate(flat)
        if isinstance(value, Tensor)
        for axis, size in enumerate(value.shape)
    }


def _candidates(inputs: Inputs) -> Iterator[tuple[Axis, ...]]:
    every = sizes_of(inputs)
    by_place: dict[Any, list[Axis]] = {}
    by_size: dict[int, list[Axis]] = {}
    for axis, size in every.items():
        by_place.setdefault((axis[1], size), []).append(axis)
        by_size.setdefault(size, []).append(axis)
    tried = dict.fromkeys(
        [*map(tuple, by_place.values()), *((axis,) for axis in every), *map(tuple, by_size.values())]
    )
    yield from tried


def _taken(model: nn.Module, inputs: Inputs, axes: Sequence[Axis]) -> tuple[int, int] | None:
    """The first two of other sizes that a network takes."""
    size = sizes_of(inputs)[axes[0]]
    tries = [size + 1, 2 * size, 2 * size + 1, 3 * size, size - 1, size // 2]
    found: list[int] = []
    for other in dict.fromkeys(each for each in tries if each not in (0, size)):
        if _runs(model, with_sizes(inputs, dict.fromkeys(axes, other))):
            found.append(other)
        if len(found) == 2:
            return found[0], found[1]
    return None


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    args, kwargs = arguments(inputs)
    try:
        with untouched(model):
            model(*args, **kwargs)
    except Exception:  # whatever a forward raises that does not take this
        return False
    return True
