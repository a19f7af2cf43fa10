"""Sums of products: matrix products, linear and recurrent layers, convolutions, attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from string import ascii_letters
from typing import Any

import numpy as np
from torch import fx, nn

from prunekit.graph.captured_graph import argument, shape_of
from prunekit.graph.labels import GROUPS, Dim, Propagator, Value, along, merged
from prunekit.graph.ops.pointwise import SPREAD, added, aligned
from prunekit.graph.ops.registry import (
    Keeps,
    ModuleSizes,
    always,
    operators,
    resize_groups,
)


def contracted(propagator: Propagator, operands: Sequence[Value], letters: Sequence[str], out: str) -> Value:
    """Axes of a product of tensors whose axes are named by letters, summed over those not in `out`.

    Axes with the same letter are joined. Where a sum runs over entries that can be taken out, one of the
    factors must be zero there, or they are frozen.
    """
    found: dict[str, list[Dim]] = {}
    for value, names in zip(operands, letters, strict=True):
        for dim, letter in zip(value, names, strict=True):
            found.setdefault(letter, []).append(dim)
            _role(propagator, dim, letter, [other for other in letters if other is not names], out)
    # a product of two things that the network computed is attention
    computed = len(operands) > 1 and propagator.all_computed
    joined: dict[str, Dim] = {}
    for letter, dims in found.items():
        size = max(dim.size for dim in dims)
        wide = [dim for dim in dims if dim.size == size]
        propagator.freeze([dim for dim in dims if dim.size < size], SPREAD)
        labels = propagator.join_all(wide)
        dim = Dim(size, labels, any(each.zero for each in wide))
        if labels is not None and letter not in out:
            if not dim.zero:
                propagator.freeze([dim], "is summed over where it need not be zero")
            if computed:
                propagator.hint("head width", labels)
        elif computed:
            propagator.hint("heads" if len(wide) > 1 else "head width", labels)
        joined[letter] = dim
    return tuple(joined[letter] for letter in out)


def _role(propagator: Propagator, dim: Dim, letter: str, others: Sequence[str], out: str) -> None:
    if letter not in out:
        propagator.role(dim, "consumer")
    elif not any(letter in names for names in others):
        propagator.role(dim, "producer")


def linear(propagator: Propagator, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """x (..., in), weight (out, in), bias (out)."""
    lead = ascii_letters[: len(x) - 1]
    kind = "MLP width" if len(x) > 2 else "neurons"
    if weight[0].origin is not None:
        propagator.hint(kind, weight[0].labels)
    if all(dim.origin is None for dim in weight):
        # computed from parameters, as where two small matrices make up for a large one
        weight = tuple(dim._replace(origin=("", index)) for index, dim in enumerate(weight))
    if len(weight) == 1:
        return contracted(propagator, [x, weight], [lead + "Z", "Z"], lead)
    out = contracted(propagator, [x, weight], [lead + "Z", "YZ"], lead + "Y")
    return out if bias is None else added(propagator, [out, bias])


def matmul(propagator: Propagator, a: Value, b: Value) -> Value:
    """a (..., n, k) times b (..., k, m), either of them also as a vector."""
    batch = ascii_letters[: max(len(a), len(b))]
    left = batch[len(batch) - max(len(a) - 2, 0) :] + ("YZ" if len(a) > 1 else "Z")
    right = batch[len(batch) - max(len(b) - 2, 0) :] + ("ZX" if len(b) > 1 else "Z")
    lead = batch[len(batch) - max(len(a) - 2, len(b) - 2, 0) :]
    return contracted(propagator, [a, b], [left, right], lead + "Y" * (len(a) > 1) + "X" * (len(b) > 1))


def addmm(propagator: Propagator, bias: Value, a: Value, b: Value, **_: Any) -> Value:
    """bias + a times b."""
    return added(propagator, [matmul(propagator, a, b), bias])


def outer(propagator: Propagator, a: Value, b: Value) -> Value:
    """a (n) times b (m)."""
    return contracted(propagator, [a, b], ["a", "b"], "ab")


def einsum(propagator: Propagator, equation: str, operands: Sequence[Value], **_: Any) -> Value | Any:
    """The sum of products that the equation names; a repeated letter in one operand is not followed."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    letters = left.split(",")
    spare = [letter for letter in ascii_letters if letter not in equation]
    dots = 0
    for index, names in enumerate(letters):
        if "..." in names:
            count = len(operands[index]) - len(names) + 3
            dots = max(dots, count)
            letters[index] = names.replace("...", "".join(spare[-count:] if count else ""))
    if not arrow:
        every = "".join(letters)
        out = ("..." if dots else "") + "".join(
            sorted(letter for letter in set(left) - {",", "."} if every.count(letter) == 1)
        )
    out = out.replace("...", "".join(spare[-dots:] if dots else ""))
    if any(len(set(names)) != len(names) for names in letters):
        return propagator.unknown("a diagonal is taken")
    return contracted(propagator, operands, letters, out)


def distances(propagator: Propagator, a: Value, b: Value, *_: Any, **__: Any) -> Value:
    """a (..., n, k) from b (..., m, k): where both have zeros, nothing is added."""
    if not (a[-1].zero and b[-1].zero):
        propagator.freeze([a[-1], b[-1]], "is summed over where it need not be zero")
    propagator.join(a[-1], b[-1])
    lead = aligned(propagator, [a[:-2], b[:-2]], lambda _: False)
    return (*lead, *(each._replace(zero=False, origin=None) for each in (a[-2], b[-2])))


operators("cdist", labels=distances)
_sums = partial(operators, labels=addmm, factors=(1, 2), addend=0, saved="default")
_sums("addbmm addmv baddbmm")
_sums(
    "addmm",
    mixes=True,
    # as the library transformers calls its linear layer
    module_sizes=ModuleSizes("Conv1D", {"weight": ("nx", "nf"), "bias": ("nf",)}),
)
operators(
    "linear",
    labels=linear,
    module_sizes=ModuleSizes(
        (nn.Linear,), {"weight": ("out_features", "in_features"), "bias": ("out_features",)}
    ),
    mixes=True,
    factors=(0, 1),
    addend=2,
    saved="default",
)
operators("bmm matmul mm", labels=matmul, mixes=True, factors=(0, 1), saved="default")
operators("dot mv", labels=matmul, factors=(0, 1), saved="default")
operators("ger outer", labels=outer, factors=(0, 1), saved="default")
operators("einsum", labels=einsum, mixes=True, saved="default")
operators("linalg_cross vdot", saved="default")


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
    places = x[channel + 1 :]
    apart = [_one_by_one(propagator, axis, dim) for axis, dim in enumerate(kernel)]
    mixed = [dim for dim, alone in zip(places, apart, strict=True) if not alone]
    propagator.freeze([*kernel, *mixed], "is convolved over")
    if groups == 1:
        propagator.join(x[channel], inside)
        made = out
    else:
        made = _grouped(propagator, x[channel], rows, offsets, groups, transposed=transposed)
    propagator.hint("filters", made.labels)
    made = Dim(made.size, made.labels, out.zero)
    if bias is not None:
        made = Dim(made.size, propagator.join(made, bias[0]), out.zero and bias[0].zero)
    spatial = [
        Dim(dim.size, dim.labels, dim.zero and bias is None) if alone else Dim(int(size))
        for dim, alone, size in zip(places, apart, propagator.val.shape[channel + 1 :], strict=True)
    ]
    return (*(dim._replace(origin=None) for dim in x[:channel]), made, *spatial)


def _one_by_one(propagator: Propagator, axis: int, kernel: Dim) -> bool:
    """Whether the entries along an axis of places stay apart."""
    steps = [propagator.argument(name) for name in ("stride", "padding", "output_padding")]
    given = [step[axis % len(step)] if isinstance(step, (list, tuple)) else step for step in steps]
    return kernel.size == 1 and given[0] == 1 and not any(given[1:])


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


def attention(
    propagator: Propagator,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> Value:
    """query (..., heads, T, d), key and value (..., heads, S, d): heads go together, so do widths."""
    propagator.freeze([key[-2], value[-2]], "is shared out")
    propagator.join(key[-2], value[-2])
    width = Dim(query[-1].size, propagator.join(query[-1], key[-1]), query[-1].zero or key[-1].zero)
    if width.labels is not None:
        propagator.hint("head width", width.labels)
        if not width.zero:
            propagator.freeze([width], "is summed over where it need not be zero")
    propagator.hint("head width", value[-1].labels)
    lead = [dim._replace(zero=False) for dim in _heads(propagator, query, key, value, enable_gqa)]
    if lead:
        propagator.hint("heads", lead[-1].labels)
    out = (*lead, query[-2]._replace(zero=False), value[-1])
    if mask is not None:
        shares = (*lead, query[-2], Dim(key[-2].size))
        aligned(propagator, [shares, mask], all)
    zero = value[-3].zero if len(value) > 2 else False
    return tuple(
        dim._replace(zero=zero if index == len(out) - 3 else dim.zero, origin=None)
        for index, dim in enumerate(out)
    )


def _heads(propagator: Propagator, query: Value, key: Value, value: Value, grouped: bool) -> list[Dim]:
    lead = []
    for index, dims in enumerate(zip(query[:-2], key[:-2], value[:-2], strict=True)):
        q, k, v = dims
        if grouped and index == len(query) - 3 and q.size != k.size:
            times = q.size // k.size
            shared = propagator.join(k, v)
            k = v = Dim(q.size, None if shared is None else shared.repeat(times), v.zero)
        wide = [dim for dim in (q, k, v) if dim.size == max(q.size, k.size, v.size)]
        lead.append(Dim(wide[0].size, propagator.join_all(wide), v.zero))
    return lead


def set_scale(node: fx.Node, keeps: Keeps) -> None:
    """The temperature stays that of the full width."""
    width = shape_of(node.args[0])[-1]
    if node.kwargs.get("scale") is None:
        node.update_kwarg("scale", 1 / math.sqrt(width))


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
operators("scaled_dot_product_attention", labels=attention, resize=set_scale, saved="default")
