"""The record of an operator: everything that prunekit knows of it, and the table of all records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunekit.graph.captured_graph import argument, op_name, set_argument, shape_of
from prunekit.graph.labels import Flags, position

Kept = tuple[tuple[Flags | None, ...], ...]
"""What stays of each axis of each value of a node; None where all does."""
Keeps = Callable[[fx.Node], Kept]
Zero = Callable[[list[bool], Sequence[Any], Mapping[str, Any]], bool]
"""`(zeros, args, kwargs)`, whether the result is zero, from whether each of the tensors that meet is."""

MAX_PARTS = 10_000
"""The most tensors that one call of a saved graph may return, and the longest list that it may take."""


@dataclass(frozen=True)
class ModuleSizes:
    """The attributes of a PyTorch module that repeat the shapes of its parameters and buffers.

    Attributes:
        kind: the module's classes, or the name of one that is not PyTorch's.
        axes: for each tensor by its short name the attributes that are the sizes of its first axes.
        grouped: whether the second axis of the weight lies within one of the module's `groups`.
    """

    kind: tuple[type, ...] | str
    axes: Mapping[str, tuple[str, ...]]
    grouped: bool = False

    def of(self, module: nn.Module, name: str, shape: Sequence[int], groups: int) -> dict[str, int]:
        """The attributes that follow from the shape of a tensor; none for other modules and tensors."""
        kind = self.kind
        if not (type(module).__name__ == kind if isinstance(kind, str) else isinstance(module, kind)):
            return {}
        attributes = self.axes.get(name, ())
        found = dict(zip(attributes, shape, strict=False))
        if self.grouped and name == "weight":
            found |= {attributes[1]: shape[1] * groups, "groups": groups}
        return found


@dataclass(frozen=True)
class Operator:
    """One operator of ATen, with all its overloads and the variant that writes in place.

    Attributes:
        name: without library and overload; without the "_" of the variant that writes in place.
        labels: `(propagator, *args, **kwargs)`, the labels of what it gives. Tensors among the arguments
            come as values (tuples of axes) where they stand by themselves. None: entry by entry if PyTorch
            tags it so, and otherwise everything that goes in is frozen.
        pointwise: whether it works entry by entry, though PyTorch does not tag it so.
        zero: of one that works entry by entry, what it does to zero; None: anything may come of it.
        resize: `(node, keeps)`, sets the constants among a node's arguments that are sizes to what stays.
        convolves: whether it is a convolution, with or without an argument `groups` given.
        attributes: `(module, node, keeps)`, new values of a module's attributes that repeat the node's
            constants, or a size of its value.
        module_sizes: the attributes of its PyTorch module that follow from the shapes of its parameters.
        over_kept: `(call, node, args, kwargs, keeps)`, its value with statistics over what stays only.
        drops: whether it sets entries to zero at random: it is left out where networks are compared.
        activation: whether it is an activation, behind which units are looked at.
        moves: whether it only moves, picks or repeats entries, and computes none.
        passes_units: whether units come through it unchanged but for their place, extent or scale, as in
            pooling and batch norms.
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
    zero: Zero | None = None
    resize: Callable[[fx.Node, Keeps], None] | None = None
    convolves: bool = False
    attributes: Callable[[nn.Module, fx.Node, Keeps], dict[str, Any]] | None = None
    module_sizes: ModuleSizes | None = None
    over_kept: Callable[[Callable[..., Any], fx.Node, Any, Any, Keeps], Any] | None = None
    drops: bool = False
    activation: bool = False
    moves: bool = False
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


def operator_of(node: fx.Node) -> Operator:
    """The record of what a node calls; an empty one for an operator of which nothing is known."""
    name = op_name(node)
    return OPERATORS.get(name) or Operator(name)


def always(node: fx.Node) -> bool:
    """For `by_extent`: whatever the arguments are."""
    return True


def kept_along(node: Any, keeps: Keeps, axis: int) -> Flags | None:
    """What stays of one axis of a node's first value; None where all does."""
    found = keeps(node) if isinstance(node, fx.Node) else ()
    return found[0][axis] if found and len(found[0]) > axis else None


def new_shape(node: fx.Node, keeps: Keeps) -> list[int]:
    """The shape of a node's value once units are taken out."""
    shape = shape_of(node)
    stays = [kept_along(node, keeps, axis) for axis in range(len(shape))]
    return [size if flags is None else int(flags.sum()) for size, flags in zip(shape, stays, strict=True)]


def resize_groups(node: fx.Node, keeps: Keeps, *, name: str = "groups", axis: int = 1) -> None:
    """Give a node the number of groups along an axis of its input that have something left."""
    groups, flags = argument(node, name), kept_along(node.args[0], keeps, axis)
    if flags is not None:
        set_argument(node, name, groups_left(flags, groups))


def groups_left(flags: Flags, groups: int) -> int:
    """How many of an axis' groups have something left."""
    return int(flags.reshape(groups, -1).any(axis=1).sum())


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
