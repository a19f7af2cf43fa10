"""Convolutions, with groups and transposed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import fx, nn

from prunekit.graph.labels import Dim, Value
from prunekit.graph.ops.registry import (
    Keeps,
    argument,
    groups_left,
    kept_along,
    operator_of,
    operators,
    set_argument,
)
from prunekit.graph.propagator import Propagator, rows_joined


def conv(
    propagator: Propagator,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Value:
    """x (N, C, ...), weight (out, C / groups, ...)."""
    return _convolved(propagator, x, weight[0], weight[1], weight[2:], bias, groups, transposed=False)


def conv_transpose(
    propagator: Propagator,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Value:
    """x (N, C, ...), weight (C, out / groups, ...)."""
    return _convolved(propagator, x, weight[1], weight[0], weight[2:], bias, groups, transposed=True)


def convolution(
    propagator: Propagator,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Value:
    """Either of the two."""
    if transposed:
        return conv_transpose(propagator, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(propagator, x, weight, bias, stride, padding, dilation, groups)


def _convolved(
    propagator: Propagator,
    x: Value,
    out: Dim,
    inside: Dim,
    kernel: Sequence[Dim],
    bias: Value | None,
    groups: int,
    *,
    transposed: bool,
) -> Value:
    propagator.role(out, "producer")
    propagator.role(inside, "consumer")
    channel = len(x) - len(kernel) - 1
    propagator.freeze([*kernel, *x[channel + 1 :]], "is convolved over")
    if groups == 1:
        propagator.join(x[channel], inside)
        made = out
    elif transposed:
        made = _grouped(propagator, x[channel], inside, out, groups, transposed=True)
    else:
        made = _grouped(propagator, x[channel], out, inside, groups, transposed=False)
    propagator.hint("filters", made.labels)
    zero = out.zero
    labels = made.labels
    if bias is not None:
        labels = propagator.join(made, bias[0])
        zero = zero and bias[0].zero
    shape = [int(size) for size in propagator.val.shape]
    spatial = [Dim(size) for size in shape[channel + 1 :]]
    return (*(dim._replace(origin=None) for dim in x[:channel]), Dim(shape[channel], labels, zero), *spatial)


def _grouped(
    propagator: Propagator, x: Dim, rows: Dim, offsets: Dim, groups: int, *, transposed: bool
) -> Dim:
    """Groups of channels: either whole groups go, or the same offset within each group.

    Args:
        propagator: the state of the propagation.
        x: the channels that are read.
        rows: the weight's axis over all groups: outputs, or inputs if transposed.
        offsets: the weight's axis within one group: inputs, or outputs if transposed.
        groups: how many.
        transposed: whether the axis over all groups is that of the inputs.
    """
    each, other = rows.size // groups, offsets.size
    ways = [0, 1] if each > 1 and other > 1 else [0]
    # whole groups where they are more units than offsets are
    way = propagator.choose("groups", ways if groups >= min(each, other) else ways[::-1])
    if way is None:
        propagator.freeze([x, rows, offsets], "leaves nothing that every group could go without")
        return Dim(groups * other if transposed else rows.size)
    if way == 0:
        return _whole_groups(propagator, x, rows, offsets, groups, transposed, record=len(ways) > 1)
    size = groups * other
    if transposed:
        # inputs: the same offset in each group; outputs: offsets.labels in each group
        labels = _same_offsets(propagator, rows, groups)
        propagator.join(x, rows)
        made = None if offsets.labels is None else np.tile(offsets.labels, groups)
        _record(propagator, way, labels, offsets.labels)
        return Dim(size, made, offsets.zero)
    inputs = _same_offsets(propagator, x, groups)
    propagator.join(Dim(other, inputs), offsets)
    outputs = _same_offsets(propagator, rows, groups)
    _record(propagator, way, inputs, outputs)
    return Dim(rows.size, None if outputs is None else np.tile(outputs, groups), rows.zero)


def _whole_groups(
    propagator: Propagator, x: Dim, rows: Dim, offsets: Dim, groups: int, transposed: bool, *, record: bool
) -> Dim:
    propagator.freeze([offsets], "stays whole within each group")
    size = groups * offsets.size if transposed else rows.size
    if rows.labels is None:
        propagator.freeze([x], "meets groups that cannot change")
        return Dim(size)
    block = rows_joined(propagator, rows.labels.reshape(groups, -1))
    if x.labels is None:
        propagator.freeze([Dim(groups, block)], "reads channels that cannot change")
        return Dim(size)
    incoming = rows_joined(propagator, x.labels.reshape(groups, -1))
    labels = propagator.join(Dim(groups, incoming), Dim(groups, block))
    if labels is None:
        return Dim(size)
    if record:
        propagator.chosen("groups", 0, labels)
    return Dim(size, labels.repeat(size // groups), rows.zero)


def _same_offsets(propagator: Propagator, dim: Dim, groups: int) -> Any:
    return None if dim.labels is None else rows_joined(propagator, dim.labels.reshape(groups, -1).T)


def _record(propagator: Propagator, way: int, *axes: Any) -> None:
    found = [axis for axis in axes if axis is not None]
    if found:
        propagator.chosen("groups", way, np.concatenate(found))


def resize_groups(node: fx.Node, keeps: Keeps) -> None:
    """The number of groups that have something left."""
    spatial = len(node.args[1].meta["val"].shape) - 2  # type: ignore[union-attr]
    x = node.args[0]
    axis = len(x.meta["val"].shape) - spatial - 1  # type: ignore[union-attr]
    place = operator_of(node).groups
    assert place is not None
    groups = argument(node, place, "groups", 1)
    if groups > 1:
        set_argument(node, place, "groups", groups_left(kept_along(x, keeps, axis), groups))


def sizes_of_convolution(module: nn.Module, name: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """The weight has its outputs over all groups, and its inputs within one."""
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and name == "weight":
        return {"out_channels": shape[0], "in_channels": shape[1] * groups, "groups": groups}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and name == "bias":
        return {"out_channels": shape[0]}
    return {}


def sizes_of_transposed(module: nn.Module, name: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """The weight has its inputs over all groups, and its outputs within one."""
    kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    if isinstance(module, kinds) and name == "weight":
        return {"in_channels": shape[0], "out_channels": shape[1] * groups, "groups": groups}
    if isinstance(module, kinds) and name == "bias":
        return {"out_channels": shape[0]}
    return {}


def pads(node: fx.Node) -> bool:
    """Whether zeros come in at the edges; what is the same everywhere is then less there."""
    padding = argument(node, 4, "padding", 0)
    return padding != "valid" if isinstance(padding, str) else bool(np.any(padding))


operators(
    "conv1d conv2d conv3d",
    labels=conv,
    resize=resize_groups,
    groups=6,
    module_sizes=sizes_of_convolution,
    mixes=True,
    factors=(0, 1),
    addend=2,
    by_extent=pads,
    saved="default padding",
)
operators(
    "conv_transpose1d",
    labels=conv_transpose,
    resize=resize_groups,
    groups=6,
    module_sizes=sizes_of_transposed,
    mixes=True,
    factors=(0, 1),
    addend=2,
    by_extent=lambda _: True,  # kernels lie over each other, but less so at the edges
    saved="default",
)
operators(
    "conv_transpose2d conv_transpose3d",
    labels=conv_transpose,
    resize=resize_groups,
    groups=6,
    module_sizes=sizes_of_transposed,
    mixes=True,
    factors=(0, 1),
    addend=2,
    by_extent=lambda _: True,  # kernels lie over each other, but less so at the edges
    saved="input",
)
operators(
    "convolution",
    labels=convolution,
    resize=resize_groups,
    groups=8,
    mixes=True,
    factors=(0, 1),
    addend=2,
    by_extent=lambda node: pads(node) or bool(argument(node, 6, "transposed")),
    saved="default",
)
