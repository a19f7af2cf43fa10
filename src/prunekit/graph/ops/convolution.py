"""Convolutions, with groups and transposed."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from torch import fx, nn

from prunekit.graph.labels import Dim, Value
from prunekit.graph.nodes import argument, shape_of
from prunekit.graph.ops.registry import Keeps, ModuleSizes, always, operators, resize_groups
from prunekit.graph.propagator import GROUPS, Propagator, along, merged


def conv(
    propagator: Propagator, x: Value, weight: Value, bias: Value | None = None, *_: Any, **__: Any
) -> Value:
    """x (N, C, ...), weight (out, C / groups, ...) or, transposed, (C, out / groups, ...)."""
    groups = propagator.argument("groups")
    transposed = "transpose" in propagator.operator or bool(propagator.argument("transposed"))
    rows, offsets, *kernel = weight
    out, inside = (offsets, rows) if transposed else (rows, offsets)
    propagator.role(out, "producer")
    propagator.role(inside, "consumer")
    channel = len(x) - len(kernel) - 1
    propagator.freeze([*kernel, *x[channel + 1 :]], "is convolved over")
    if groups == 1:
        propagator.join(x[channel], inside)
        made = out
    else:
        made = _grouped(propagator, x[channel], rows, offsets, groups, transposed=transposed)
    propagator.hint("filters", made.labels)
    made = Dim(made.size, made.labels, out.zero)
    if bias is not None:
        made = Dim(made.size, propagator.join(made, bias[0]), out.zero and bias[0].zero)
    spatial = [Dim(int(size)) for size in propagator.val.shape[channel + 1 :]]
    return (*(dim._replace(origin=None) for dim in x[:channel]), made, *spatial)


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
    # of the two ways the one that leaves more units
    ways = [0, 1] if each > 1 and other > 1 else [0]
    way = propagator.choose(GROUPS, ways, [groups, min(each, other)])
    if way is None:
        propagator.freeze([x, rows, offsets], "leaves nothing that every group could go without")
        return Dim(groups * (other if transposed else each))
    read = along(propagator, x, [groups, x.size // groups], way)
    cut = along(propagator, rows, [groups, each], way)
    if way == 0:
        propagator.freeze([offsets], "stays whole within each group")
        made = Dim(groups, propagator.join(read, cut))
        if len(ways) > 1:
            propagator.chosen(GROUPS, way, made.labels)
        return merged(propagator, [made, Dim(other if transposed else each)], tag=GROUPS)
    inside, made = (cut, offsets) if transposed else (offsets, cut)
    propagator.join(read, inside)
    propagator.chosen(GROUPS, way, inside.labels, made.labels)
    return merged(propagator, [Dim(groups), made], tag=GROUPS)


def resize_convolution(node: fx.Node, keeps: Keeps) -> None:
    """The groups of a convolution, whose inputs need not be a batch."""
    x, weight = node.args[:2]
    resize_groups(node, keeps, axis=len(shape_of(x)) - len(shape_of(weight)) + 1)


def pads(node: fx.Node) -> bool:
    """Whether zeros come in at the edges; what is the same everywhere is then less there."""
    padding = argument(node, "padding")
    return padding != "valid" if isinstance(padding, str) else bool(np.any(padding))


_convolutions = partial(
    operators, labels=conv, resize=resize_convolution, convolves=True, mixes=True, factors=(0, 1), addend=2
)
_convolutions(
    "conv1d conv2d conv3d",
    module_sizes=ModuleSizes(
        (nn.Conv1d, nn.Conv2d, nn.Conv3d),
        {"weight": ("out_channels", "in_channels"), "bias": ("out_channels",)},
        grouped=True,
    ),
    by_extent=pads,
    saved="default padding",
)
_TRANSPOSED = ModuleSizes(
    (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    {"weight": ("in_channels", "out_channels"), "bias": ("out_channels",)},
    grouped=True,
)
# kernels lie over each other, but less so at the edges
_convolutions("conv_transpose1d", module_sizes=_TRANSPOSED, by_extent=always, saved="default")
_convolutions("conv_transpose2d conv_transpose3d", module_sizes=_TRANSPOSED, by_extent=always, saved="input")
_convolutions(
    "convolution", by_extent=lambda node: pads(node) or bool(argument(node, "transposed")), saved="default"
)
