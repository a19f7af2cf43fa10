"""The record of an operator: everything that prunekit knows of it, and the table of all records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunekit.graph.labels import Flags, position

Keeps = Callable[[fx.Node], tuple[tuple[Flags | None, ...], ...]]
"""What stays of each axis of each value of a node; None where all does."""
Zero = Callable[[list[bool]], bool]
"""Whether the result is zero, from whether each of the tensors that meet is."""

MAX_PARTS = 10_000
"""The most tensors that one call of a saved graph may return, and the longest list that it may take."""


@dataclass(frozen=True)
class Operator:
    """One operator of ATen, with all its overloads and the variant that writes in place.

    Attributes:
        name: without library and overload; without the "_" of the variant that writes in place.
        labels: `(propagator, *args, **kwargs)`, the labels of what it gives. Tensors among the arguments
            come as values (tuples of axes) where they stand by themselves. None: entry by entry if PyTorch
            tags it so, and otherwise everything that goes in is frozen.
        pointwise: whether it works entry by entry, though PyTorch does not tag it so.
        zero: of one that works entry by entry, `(args, kwargs, number of tensors)`, what it does to zero.
        resize: `(node, keeps)`, sets the constants among a node's arguments that are sizes to what stays.
        groups: the place of its argument `groups`, if it is a convolution.
        attributes: `(module, node)`, new values of a module's attributes that repeat the node's constants.
        module_sizes: `(module, parameter, shape, groups)`, attributes of its PyTorch module that follow from
            the shape of one of the module's parameters; empty for other modules.
        over_kept: `(call, node, args, kwargs, keeps)`, its value with statistics over what stays only.
        drops: whether it sets entries to zero at random: it is left out where networks are compared.
        activation: whether it is an activation, behind which units are looked at.
        passes_units: whether units come through it unchanged but for their place or extent, as in pooling.
        mixes: whether it sums over products with weights, as a layer does.
        factors: the places of the two tensors whose products it sums, or is, the weights second.
        addend: the place of what it adds to such sums, a bias.
        by_extent: `(node)`, whether what it makes of a constant depends on the extent of its input, as where
            zeros come in at the edges, or where it sums over positions.
        saved: the overloads that a saved graph may hold. Such an overload computes new values, or a view that
            stays inside of its argument, from tensors and numbers alone. It makes no view by strides, writes
            into no argument, takes no `out=`, leaves no memory uninitialised, and gives no results whose
            shapes depend on values; it checks its arguments; and no single number makes it run for ever.
        check: `(arguments by name)`, raises ValueError for arguments that a saved graph may not give it.
        results: by overload, how many tensors it returns, worked out from its arguments before it is called.
    """

    name: str
    labels: Callable[..., Any] | None = None
    pointwise: bool = False
    zero: Callable[[Any, Any, int], Zero] | None = None
    resize: Callable[[fx.Node, Keeps], None] | None = None
    groups: int | None = None
    attributes: Callable[[nn.Module, fx.Node], dict[str, Any]] | None = None
    module_sizes: Callable[[nn.Module, str, tuple[int, ...], int], dict[str, Any]] | None = None
    over_kept: Callable[[Callable[..., Any], fx.Node, Any, Any, Keeps], Any] | None = None
    drops: bool = False
    activation: bool = False
    passes_units: bool = False
    mixes: bool = False
    factors: tuple[int, int] | None = None
    addend: int | None = None
    by_extent: Callable[[fx.Node], bool] | None = None
    saved: tuple[str, ...] = ()
    check: Callable[[Mapping[str, Any]], None] | None = None
    results: Mapping[str, Callable[..., int]] = field(default_factory=dict)


OPERATORS: dict[str, Operator] = {}
"""All records, by the operator's name."""


def operators(names: str, saved: str = "", **facts: Any) -> None:
    """Register a record for each of these operators, of which the same is known.

    Args:
        names: one or more of `Operator.name`, with blanks between.
        saved: `Operator.saved`, with blanks between.
        facts: the other attributes of `Operator`.
    """
    for name in names.split():
        if name in OPERATORS:
            raise ValueError(f"operator {name!r} has a record already")
        OPERATORS[name] = Operator(name, saved=tuple(saved.split()), **facts)


def op_name(node: fx.Node) -> str:
    """The name of an ATen operator without overload and the "_" of one that writes in place.

    Of any other target it is its text.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return str(target)
    name = target.overloadpacket.__name__
    return name.removesuffix("_") if target._schema.is_mutable else name


def operator_of(node: fx.Node) -> Operator:
    """The record of what a node calls; an empty one for an operator of which nothing is known."""
    name = op_name(node)
    return OPERATORS.get(name) or Operator(name)


def kept_along(node: Any, keeps: Keeps, axis: int) -> Flags | None:
    """What stays of one axis of a node's first value; None where all does."""
    found = keeps(node) if isinstance(node, fx.Node) else ()
    return found[0][axis] if found and len(found[0]) > axis else None


def new_shape(node: fx.Node, keeps: Keeps) -> list[int]:
    """The shape of a node's value once units are taken out."""
    shape = [int(size) for size in node.meta["val"].shape]
    stays = [kept_along(node, keeps, axis) for axis in range(len(shape))]
    return [size if flags is None else int(flags.sum()) for size, flags in zip(shape, stays, strict=True)]


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """An argument of a node's call, given by its place or by its name."""
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: fx.Node, place: int, name: str, value: Any) -> None:
    """Give an argument of a node's call another value."""
    if name in node.kwargs or place >= len(node.args):
        node.update_kwarg(name, value)
    else:
        node.update_arg(place, value)


def groups_left(flags: Flags | None, groups: int) -> int:
    """How many of an axis' groups have something left."""
    return groups if flags is None else int(flags.reshape(groups, -1).any(axis=1).sum())


def tensors_among(value: Any) -> list[Tensor]:
    """All tensors in nested lists of arguments."""
    if isinstance(value, tuple | list):
        return [tensor for each in value for tensor in tensors_among(each)]
    return [value] if isinstance(value, Tensor) else []


def taken(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """The entries of one axis that stay."""
    return tensor.index_select(axis, torch.from_numpy(np.flatnonzero(flags)).to(tensor.device))


def spread(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """Back at their places, with zeros between."""
    axis = position(axis, tensor.dim())
    shape = (*tensor.shape[:axis], flags.size, *tensor.shape[axis + 1 :])
    index = torch.from_numpy(np.flatnonzero(flags)).to(tensor.device)
    return tensor.new_zeros(shape).index_copy(axis, index, tensor)
