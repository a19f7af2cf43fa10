"""A pruned network held against the original with zeros in it: plain tensor code, none of the proof's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

ROUNDING = 2e-6  # of the largest value of an output: what single precision inside of a network leaves
Axes = Mapping[str, Mapping[int, Tensor]]


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    """The real outputs of a network in a row; of a class of outputs every tensor."""
    with torch.no_grad():
        given = model(**inputs) if isinstance(inputs, Mapping) else model(*_tuple(inputs))
    return [each for each in _tensors(given) if each.is_floating_point()]


def _tuple(inputs: Any) -> tuple[Any, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (tuple, list)):
        for each in value:
            yield from _tensors(each)


def silenced(model: nn.Module, axes: Axes) -> nn.Module:
    """A copy in which what went of each parameter is zero: rows that make a unit, columns that read it.

    Of a row under a weight norm that is its norm, since the direction is divided by its own length.

    Args:
        model: the network before.
        axes: for each parameter by dimension (size,) flags of what stays.
    """
    model = copy.deepcopy(model)
    tensors = dict([*model.named_parameters(remove_duplicate=False)])
    with torch.no_grad():
        for name, dims in axes.items():
            for dim, stays in dims.items():
                norm = axes.get(name.removesuffix("original1") + "original0", {})
                if name in tensors and not (name.endswith("original1") and dim in norm):
                    shape = [1] * tensors[name].dim()
                    shape[dim] = -1
                    tensors[name].mul_(stays.view(shape).to(tensors[name].dtype))
    return model


def difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference of outputs, a share of the largest value of each; infinite for other shapes."""
    if [each.shape for each in wanted] != [each.shape for each in found]:
        return float("inf")
    worst = 0.0
    for first, second in zip(wanted, found, strict=True):
        if first.numel() and not torch.equal(first.nan_to_num(), second.nan_to_num()):
            scale = max(float(first.nan_to_num().abs().max()), 1e-6)
            worst = max(worst, float((first - second).nan_to_num(nan=1e9).abs().max()) / scale)
    return worst


def mapped(inputs: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Inputs with every tensor changed."""
    return pytree.tree_map_only(Tensor, change, inputs)


def doubled(inputs: Any) -> Any:
    """Inputs in double precision, as far as they are real."""
    return mapped(inputs, lambda each: each.double() if each.is_floating_point() else each)


def other_batch(inputs: Any) -> Any:
    """Two and a half times as many examples, or None where the tensors do not agree on how many there are."""
    counts = {
        len(each) if each.dim() else 0 for each in pytree.tree_leaves(inputs) if isinstance(each, Tensor)
    }
    if len(counts) != 1 or 0 in counts:
        return None
    (count,) = counts
    rows = torch.arange(2 * count + 1) % count
    return mapped(inputs, lambda each: each[rows])


def other_sizes(inputs: Any) -> Iterator[Any]:
    """Inputs of larger images, of longer sequences: the original decides which of them it takes."""
    yield mapped(
        inputs, lambda each: torch.cat([torch.cat([each, each], -1)] * 2, -2) if each.dim() >= 4 else each
    )
    yield mapped(
        inputs,
        lambda each: torch.cat([each, each], 1) if each.dim() == 2 and not each.is_floating_point() else each,
    )
    yield mapped(inputs, lambda each: torch.cat([each, each], -1) if each.dim() in {2, 3} else each)
    yield mapped(inputs, lambda each: torch.cat([each, each], 1) if each.dim() == 3 else each)


def larger(model: nn.Module, inputs: Any) -> Any:
    """The first of the other sizes that a network takes; None where it takes none."""
    same = [tuple(each.shape) for each in pytree.tree_leaves(inputs) if isinstance(each, Tensor)]
    for each in other_sizes(inputs):
        if [tuple(one.shape) for one in pytree.tree_leaves(each) if isinstance(one, Tensor)] != same:
            try:
                call(model, each)
            except Exception:  # whatever says that it does not take this
                continue
            return each
    return None


def sharpest(small: nn.Module, silent: nn.Module, inputs: Any) -> tuple[Any, float]:
    """Inputs of the precision that two networks are turned to, and what rounding is there.

    Double, where both can be run in it; single, where one has constants of its own.
    """
    wide = doubled(inputs)
    try:
        call(small.double(), wide)
        call(silent.double(), wide)
    except RuntimeError:
        small.float()
        silent.float()
        return inputs, 1e-4
    return wide, ROUNDING
