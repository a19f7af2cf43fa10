"""Sizes written into an exported graph, made to fit what stays."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunekit.errors import InputError
from prunekit.graph.captured import module_of
from prunekit.graph.traced import Flags, Keeping
from prunekit.graph.values import position

Keeps = Callable[[fx.Node], tuple[tuple[Flags | None, ...], ...]]

_SHAPES = {
    *("view", "reshape", "_unsafe_view", "expand", "zeros", "ones", "full", "empty"),
    *("rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty"),
}
_PIECES = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_copy"}


def op_name(node: fx.Node) -> str:
    """Name of an ATen operator without its overload; of any other target its text."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target.overloadpacket.__name__.removesuffix("_")
    return str(target)


@dataclass(frozen=True)
class Corrected:
    """A graph whose constants fit what stays.

    Attributes:
        graph: the graph.
        named: what its `get_attr` nodes name.
    """

    graph: fx.Graph
    named: Mapping[str, Any]

    @cached_property
    def module(self) -> fx.GraphModule:
        """The graph, to be run."""
        self.graph.lint()
        return fx.GraphModule(dict(self.named), self.graph)


def corrected(graph: fx.Graph, root: nn.Module, keeping: Keeping, number: int, prefix: str = "") -> Corrected:
    """A copy of a graph with its constants made to fit; checks of dtypes and sizes are left out.

    Args:
        graph: with parameters as inputs.
        root: what its `get_attr` nodes name.
        keeping: what stays of every node.
        number: of the graph.
        prefix: of the names of its nodes.

    Raises:
        InputError: where nothing would be left of a tensor.
    """
    smaller, named = copy.deepcopy(graph), dict[str, Any]()

    def keeps(node: fx.Node) -> tuple[tuple[Flags | None, ...], ...]:
        return keeping(number, f"{prefix}{node.name}")

    for node in list(smaller.nodes):
        _not_empty(node, keeps)
        if node.op == "get_attr":
            named[str(node.target)] = attrgetter(str(node.target))(root)
        if node.op != "call_function":
            continue
        name = op_name(node)
        if name.startswith(("_assert", "_assert_tensor_metadata", "sym_constrain")):
            smaller.erase_node(node)
            continue
        for arg in node.args:
            if isinstance(arg, fx.Node) and arg.op == "get_attr":
                inner = named[str(arg.target)]
                if isinstance(inner, fx.GraphModule):
                    below = corrected(inner.graph, inner, keeping, number, f"{prefix}{node}/")
                    named[str(arg.target)] = below.module
        _correct(node, name, keeps)
    return Corrected(smaller, named)


def _not_empty(node: fx.Node, keeps: Keeps) -> None:
    for axes in keeps(node):
        for axis, flags in enumerate(axes):
            if flags is not None and not flags.any():
                module = module_of(node)
                raise InputError(
                    f"these units are all that axis {axis} of {node.name!r}"
                    f"{f' in {module!r}' if module else ''} has: at least one must stay"
                )


def _correct(node: fx.Node, name: str, keeps: Keeps) -> None:
    if name in _SHAPES:
        _reshape(node, keeps)
    elif name in _PIECES:
        _split(node, keeps)
    elif name in _BY_NAME:
        _BY_NAME[name](node, keeps)
    elif name.startswith(("conv1d", "conv2d", "conv3d", "conv_transpose")) or name == "convolution":
        _convolve(node, keeps)


def _stays(node: Any, keeps: Keeps, axis: int) -> Flags | None:
    """What stays of one axis of a node's first value."""
    found = keeps(node) if isinstance(node, fx.Node) else ()
    return found[0][axis] if found and len(found[0]) > axis else None


def _sizes(node: fx.Node, keeps: Keeps) -> list[int]:
    """The new shape of a node's value."""
    shape = [int(size) for size in node.meta["val"].shape]
    stays = [_stays(node, keeps, axis) for axis in range(len(shape))]
    return [size if flags is None else int(flags.sum()) for size, flags in zip(shape, stays, strict=True)]


def _set(node: fx.Node, place: int, name: str, value: Any) -> None:
    if name in node.kwargs:
        node.update_kwarg(name, value)
    elif place < len(node.args):
        node.update_arg(place, value)
    else:
        node.update_kwarg(name, value)


def _given(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def _reshape(node: fx.Node, keeps: Keeps) -> None:
    new = _sizes(node, keeps)
    if new == [int(size) for size in node.meta["val"].shape]:
        return
    for place, arg in enumerate(node.args):
        if isinstance(arg, (list, tuple)) and all(isinstance(size, int) for size in arg):
            lead = len(new) - len(arg)
            node.update_arg(place, [old if old == -1 else new[lead + axis] for axis, old in enumerate(arg)])
            return


def _unflatten(node: fx.Node, keeps: Keeps) -> None:
    x, dim, sizes = node.args[0], _given(node, 1, "dim"), _given(node, 2, "sizes")
    axis = position(dim, len(x.meta["val"].shape))  # type: ignore[union-attr]
    new = _sizes(node, keeps)[axis : axis + len(sizes)]
    _set(node, 2, "sizes", [old if old == -1 else size for old, size in zip(sizes, new, strict=True)])


def _repeat(node: fx.Node, keeps: Keeps) -> None:
    x, repeats = node.args[0], list(_given(node, 1, "repeats"))
    shape = list(x.meta["val"].shape)  # type: ignore[union-attr]
    lead, new = len(repeats) - len(shape), _sizes(node, keeps)
    for axis, times in enumerate(repeats):
        if times > 1 and (axis < lead or shape[axis - lead] == 1):
            repeats[axis] = new[axis]
    _set(node, 1, "repeats", repeats)


def _split(node: fx.Node, keeps: Keeps) -> None:
    x = node.args[0]
    dim = _given(node, 2, "dim", 0)
    axis = position(dim, len(x.meta["val"].shape))  # type: ignore[union-attr]
    if _stays(x, keeps, axis) is None:
        return
    sizes = []
    for value, axes in zip(node.meta["val"], keeps(node), strict=True):
        flags = axes[axis]
        sizes.append(int(value.shape[axis]) if flags is None else int(flags.sum()))
    node.target = torch.ops.aten.split_with_sizes.default
    node.args, node.kwargs = (x, sizes, dim), {}


def _slice(node: fx.Node, keeps: Keeps) -> None:
    x = node.args[0]
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    axis = position(_given(node, 1, "dim", 0), len(shape))
    flags = _stays(x, keeps, axis)
    if flags is None:
        return
    step = _given(node, 4, "step", 1)
    start, end, _ = slice(_given(node, 2, "start"), _given(node, 3, "end"), step).indices(int(shape[axis]))
    offset = start % step  # entries go in whole stretches of a step
    _set(node, 2, "start", int(flags[: start - offset].sum()) + offset)
    _set(node, 3, "end", int(flags[:end].sum()))


def _narrow(node: fx.Node, keeps: Keeps) -> None:
    x, dim, start, length = node.args
    flags = _stays(x, keeps, position(dim, len(x.meta["val"].shape)))  # type: ignore[union-attr, arg-type]
    if flags is not None and isinstance(start, int) and isinstance(length, int):
        node.args = (x, dim, int(flags[:start].sum()), int(flags[start : start + length].sum()))


def _roll(node: fx.Node, keeps: Keeps) -> None:
    x, shifts, dims = node.args[0], _given(node, 1, "shifts"), _given(node, 2, "dims", [])
    shape = x.meta["val"].shape  # type: ignore[union-attr]
    new = []
    for shift, dim in zip(np.atleast_1d(shifts).tolist(), np.atleast_1d(dims).tolist(), strict=True):
        axis = position(dim, len(shape))
        flags, size = _stays(x, keeps, axis), int(shape[axis])
        new.append(shift if flags is None else int(flags[size - shift % size :].sum()) if shift % size else 0)
    _set(node, 1, "shifts", new)
    _set(node, 2, "dims", np.atleast_1d(dims).tolist())


def _pad(node: fx.Node, keeps: Keeps) -> None:
    """Edges that meet units which are taken out go with them."""
    pads = list(_given(node, 1, "pad"))
    rank = len(node.meta["val"].shape)
    for index in range(len(pads) // 2):
        flags = _stays(node, keeps, rank - 1 - index)
        before, after = pads[2 * index : 2 * index + 2]
        if flags is not None and min(before, after) >= 0:
            pads[2 * index] = int(flags[:before].sum())
            pads[2 * index + 1] = int(flags[flags.size - after :].sum())
    _set(node, 1, "pad", pads)


def groups_left(flags: Flags | None, groups: int) -> int:
    """How many of an axis' groups have something left."""
    return groups if flags is None else int(flags.reshape(groups, -1).any(axis=1).sum())


def _convolve(node: fx.Node, keeps: Keeps) -> None:
    spatial = len(node.args[1].meta["val"].shape) - 2  # type: ignore[union-attr]
    x = node.args[0]
    axis = len(x.meta["val"].shape) - spatial - 1  # type: ignore[union-attr]
    place = 8 if op_name(node) == "convolution" else 7 if "transpose" in op_name(node) else 6
    groups = _given(node, place, "groups", 1)
    if groups > 1:
        _set(node, place, "groups", groups_left(_stays(x, keeps, axis), groups))


def _group_norm(node: fx.Node, keeps: Keeps) -> None:
    groups = _given(node, 1, "num_groups")
    _set(node, 1, "num_groups", groups_left(_stays(node.args[0], keeps, 1), groups))


def _layer_norm(node: fx.Node, keeps: Keeps) -> None:
    shape = _given(node, 1, "normalized_shape")
    _set(node, 1, "normalized_shape", _sizes(node, keeps)[-len(shape) :])


def _shuffle(node: fx.Node, keeps: Keeps) -> None:
    groups = _given(node, 1, "groups")
    _set(node, 1, "groups", groups_left(_stays(node.args[0], keeps, 1), groups))


def _attention(node: fx.Node, keeps: Keeps) -> None:
    """The temperature stays that of the full width."""
    width = int(node.args[0].meta["val"].shape[-1])  # type: ignore[union-attr]
    if node.kwargs.get("scale") is None:
        node.update_kwarg("scale", 1 / math.sqrt(width))


_BY_NAME: dict[str, Callable[[fx.Node, Keeps], None]] = {
    "unflatten": _unflatten,
    "repeat": _repeat,
    "slice": _slice,
    "narrow": _narrow,
    "roll": _roll,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _layer_norm,
    "channel_shuffle": _shuffle,
    "native_channel_shuffle": _shuffle,
    "scaled_dot_product_attention": _attention,
}
