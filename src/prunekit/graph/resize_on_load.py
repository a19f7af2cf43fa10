"""A freshly built network made to the sizes of one that lost units, whatever its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph.attributes import size_attributes
from prunekit.graph.surgery import Cut, Surgery
from prunekit.messages import shown

Sizes = Mapping[str, Mapping[str, Any]]


def restore_sizes(
    model: nn.Module, shapes: Mapping[str, Sequence[int]], attributes: Sizes
) -> Callable[[], None]:
    """Give parameters, buffers and the attributes that keep sizes, in place, those of a saved network.

    The values are then of no meaning, and tied parameters may not be tied any more.

    Args:
        model: a freshly built network of the class that was shrunk.
        shapes: the shape of parameters and buffers, by full name; others stay as they are.
        attributes: as `size_attributes` gives them.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: if something would have to grow or to vanish, or is not there; the model is then as it
            was.
    """
    cut = Cut(_smaller(model, shapes), _changed(model, attributes))
    surgery = Surgery(model)
    try:
        surgery.cut(cut)
    except BaseException:
        surgery.undo()
        raise
    return surgery.undo


def _smaller(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Tensor]]:
    every: dict[str, Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    found: dict[str, dict[int, Tensor]] = {}
    seen: set[tuple[int, str]] = set()  # a module that has two names is cut once
    for name, wanted in shapes.items():
        place, _, short = name.rpartition(".")
        if name not in every:
            raise ModelError(f"the model has no {name!r}")
        own = tuple(every[name].shape)
        if not _shrinks(own, wanted):
            raise ModelError(f"{name} has shape {own}, it cannot be made {tuple(wanted)}")
        here = (id(model.get_submodule(place)), short)
        if own != tuple(wanted) and here not in seen:
            seen.add(here)
            found[name] = {
                axis: torch.arange(old) < new for axis, (old, new) in enumerate(zip(own, wanted, strict=True))
            }
    return found


def _changed(model: nn.Module, attributes: Sizes) -> dict[tuple[str, str], Any]:
    own = size_attributes(model)
    found: dict[tuple[str, str], Any] = {}
    for place, values in attributes.items():
        for name, value in values.items():
            before = own.get(place, {}).get(name)
            if before is None or isinstance(before, int) != isinstance(value, int):
                where = repr(place) if place else "the model"
                raise ModelError(f"{where} keeps no size {name!r} as the saved network does")
            if before != value:
                if not _shrinks(_as_list(before), _as_list(value)):
                    where = f"{place}.{name}" if place else name
                    raise ModelError(
                        f"{where} is {before} in the model, it cannot be made {shown(value)}: "
                        "sizes get smaller, and stay at least 1"
                    )
                kind = type(getattr(model.get_submodule(place), name))
                found[place, name] = value if kind is int else kind(value)
    return found


def _shrinks(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether sizes are as many as before and none grows, or vanishes."""
    return len(before) == len(after) and all(
        new == old or 1 <= new <= old for old, new in zip(before, after, strict=True)
    )


def _as_list(size: Any) -> Sequence[int]:
    return [size] if isinstance(size, int) else size
