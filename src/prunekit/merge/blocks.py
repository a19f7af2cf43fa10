"""Blocks of a network that one convolution can take the place of: streamlines and branches of DeepRebirth.

Li, Wang, Kong 2018, arXiv 1708.04728.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.graph.captured_graph import argument, op_name, shape_of
from prunekit.merge.layer_calls import LayerCall, LayerCalls

BlockKind = Literal["streamline", "branch"]
Kernel = Literal["same", "whole"]
"""Of a new convolution: as large as the old one's, or as all that the block's outputs are computed from."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_POOLINGS = ("max_pool2d", "avg_pool2d")
"""What functions of these poolings are in a graph."""
_PAIR = tuple[int, int]


@dataclass(frozen=True)
class Way:
    """Layers in a row, from one tensor to one, by their full names; a ReLU that is a function has none."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class Mergeable:
    """Layers that a new convolution takes the place of.

    Attributes:
        kind: `streamline`, layers behind a convolution, or `branch`, branches beside it.
        convolution: the full name of the one that becomes another.
        passed: the full names of layers that then pass on what they are given.
        emptied: those of layers that then give no channels: the first ones of absorbed branches.
        old: what gave the block's outputs: one way, or those of the branches, whose channels lie in a row.
        new: what gives them then.
        kept: the outputs that the convolution gave already, as a range of the channels; None if all are new.
        rectified: whether a ReLU follows the new convolution within the block.
        width: output channels of the new convolution.
        kernel, stride, padding, dilation: of the new convolution.
    """

    kind: BlockKind
    convolution: str
    passed: tuple[str, ...]
    emptied: tuple[str, ...]
    old: tuple[Way, ...]
    new: Way
    kept: range | None
    rectified: bool
    width: int
    kernel: _PAIR
    stride: _PAIR
    padding: _PAIR
    dilation: _PAIR

    @property
    def absorbed(self) -> tuple[str, ...]:
        """The layers that are gone."""
        return (*self.emptied, *self.passed)


def blocks_of(
    calls: LayerCalls, kinds: Sequence[str] = ("streamline", "branch"), kernel: Kernel = "same"
) -> tuple[tuple[Mergeable, ...], dict[str, str]]:
    """The blocks of a network, front to back, and by the name of its convolution why something is none.

    Args:
        calls: of the network.
        kinds: of blocks that are looked for.
        kernel: of the new convolutions of streamlines.
    """
    found: list[Mergeable] = []
    refused: dict[str, str] = {}
    for call in calls:
        if "streamline" in kinds and isinstance(call.layer, nn.Conv2d):
            block = _streamline(calls, call, kernel)
            if isinstance(block, Mergeable):
                found.append(block)
            elif block:
                refused[call.name] = block
        if "branch" in kinds and op_name(call.value) in ("cat", "concat", "concatenate"):
            for name, branch in _branches(calls, call):
                if isinstance(branch, Mergeable):
                    found.append(branch)
                else:
                    refused[name] = branch
    gone = {name for block in found if block.kind == "branch" for name in block.absorbed}
    return tuple(block for block in found if block.convolution not in gone), refused


# ---- streamlines -------------------------------------------------------------------------------------------


def _streamline(calls: LayerCalls, conv: LayerCall, kernel: Kernel) -> Mergeable | str:
    """A convolution with what follows it, or the reason why it is no block; empty where nothing would go."""
    row = [conv]
    while (after := calls.only_reader(row[-1])) is not None and (_is_absorbable(after) or _is_relu(after)):
        # behind a ReLU that stays nothing can be below zero, which a shift would make
        if any(map(_is_relu, row)) and (_is_relu(after) or isinstance(after.layer, _BatchNorm)):
            break
        row.append(after)
    while _is_relu(row[-1]):  # it stays where it is, behind the block
        row.pop()
    gone = [call for call in row[1:] if not _is_relu(call)]
    if not gone:
        if after is not None and after.layer is None and op_name(after.value) in _POOLINGS:
            return f"{after} behind it is called as a function: a pooling that can go is a layer of its own"
        readers = calls.readers(conv)
        several = len(readers) > 1 and any(each is not None and _is_absorbable(each) for each in readers)
        return f"its output is read by {calls.described(readers)}" if several else ""
    why = _unfit(calls, conv)
    for call in gone:
        why = why or _odd(calls, call)
    if why:
        return why
    geometry = _geometry(conv, [call for call in gone if isinstance(call.layer, POOLS)], row[-1], kernel)
    if isinstance(geometry, str):
        return geometry
    rectified = any(map(_is_relu, row))
    layers = tuple(call.name for call in row)
    assert isinstance(conv.layer, nn.Conv2d)
    return Mergeable(
        "streamline",
        conv.name,
        tuple(call.name for call in gone),
        (),
        (Way(layers),),
        Way((conv.name, *(call.name for call in row if _is_relu(call)))),
        None,
        rectified,
        conv.layer.out_channels,
        *geometry,
    )


def _geometry(
    conv: LayerCall, pools: Sequence[LayerCall], last: LayerCall, kernel: Kernel
) -> tuple[_PAIR, _PAIR, _PAIR, _PAIR] | str:
    """Kernel, stride, padding and dilation of a convolution of the same extent of outputs, or why none is.

    A kernel that is to be the same grows by as little as makes the extents fit.
    """
    layer = conv.layer
    assert isinstance(layer, nn.Conv2d)
    if not pools:
        return _own_geometry(layer)
    sides = [_side(conv, pools, last, dim) for dim in range(2)]
    strides: Any = tuple(side.stride for side in sides)
    if kernel == "same" and all(side.padding_for(side.reach) is not None for side in sides):
        kept: Any = tuple(side.padding_for(side.reach) for side in sides)
        return layer.kernel_size, strides, kept, layer.dilation  # type: ignore[return-value]
    sizes = [
        next((size for size in side.sizes(kernel) if side.padding_for(size) is not None), 0) for side in sides
    ]
    if not all(sizes):
        return f"no kernel and padding make {last.shape[2:]} positions with a stride of {strides}"
    paddings: Any = tuple(side.padding_for(size) for side, size in zip(sides, sizes, strict=True))
    return tuple(sizes), strides, paddings, (1, 1)  # type: ignore[return-value]


def _own_geometry(layer: nn.Conv2d) -> tuple[_PAIR, _PAIR, _PAIR, _PAIR] | str:
    """Those of a convolution, the padding in numbers, or why it has none of that kind."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    if (left, top) != (right, bottom):
        return f"it pads {left} and {right}, {top} and {bottom} on its sides, which differ"
    found: Any = layer.kernel_size, layer.stride, (top, left), layer.dilation
    return found


@dataclass(frozen=True)
class _Side:
    """A convolution and the poolings behind it along one dimension.

    Attributes:
        before, after: how many positions are read and given.
        reach: how many positions the convolution reads at once.
        whole: how many an output of the last pooling depends on.
        stride, padding: of all together.
    """

    before: int
    after: int
    reach: int
    whole: int
    stride: int
    padding: int

    def sizes(self, kernel: Kernel) -> range:
        """The kernels that are tried, in order."""
        return (
            range(self.reach, self.whole + 1) if kernel == "same" else range(self.whole, self.reach - 1, -1)
        )

    def padding_for(self, size: int) -> int | None:
        """The padding with which a kernel of that size gives as many positions, nearest to the middle."""
        wanted = self.padding - (self.whole - size) // 2
        fitting = [
            each for each in range(size) if (self.before + 2 * each - size) // self.stride + 1 == self.after
        ]
        return min(fitting, key=lambda each: abs(each - wanted), default=None)


def _side(conv: LayerCall, pools: Sequence[LayerCall], last: LayerCall, dim: int) -> _Side:
    layer = conv.layer
    assert isinstance(layer, nn.Conv2d)
    reach = layer.dilation[dim] * (_kernel(conv)[dim] - 1) + 1
    whole, stride = reach, layer.stride[dim]
    padding = layer._reversed_padding_repeated_twice[2 * (1 - dim)]
    for pool in pools:
        size, apart, around = (
            _pair(getattr(pool.layer, name))[dim] for name in ("kernel_size", "stride", "padding")
        )
        whole, padding, stride = whole + (size - 1) * stride, padding + around * stride, stride * apart
    before = shape_of(conv.nodes[0].args[0])[2 + dim]
    return _Side(before, last.shape[2 + dim], reach, whole, stride, padding)


# ---- branches ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Branch:
    """One operand of a concatenation: the calls that it is computed by alone, and what they begin with."""

    calls: tuple[LayerCall, ...]
    origin: LayerCall | None
    width: int

    @property
    def convolutions(self) -> list[LayerCall]:
        return [call for call in self.calls if isinstance(call.layer, nn.Conv2d)]

    @property
    def rectified(self) -> bool:
        return bool(self.calls) and _is_relu(self.calls[-1])

    @property
    def is_host(self) -> bool:
        """Whether it ends with a convolution that sees its surroundings, and at most a ReLU."""
        body = self.calls[:-1] if self.rectified else self.calls
        return bool(body) and isinstance(body[-1].layer, nn.Conv2d) and min(_kernel(body[-1])) > 1

    @property
    def is_light(self) -> bool:
        """Whether it is a 1x1 convolution, a pooling, or a pooling and a 1x1 convolution."""
        found = self.convolutions
        body = [call for call in self.calls if not _is_relu(call)]
        return (
            bool(body)
            and len(found) <= 1
            and all(call in found or _is_absorbable(call) for call in body)
            and all(_kernel(call) == (1, 1) for call in found)
        )


def _branches(calls: LayerCalls, meeting: LayerCall) -> Iterator[tuple[str, Mergeable | str]]:
    """For each host of a concatenation its name and block, or the reason why it is none."""
    operands = argument(meeting.value, "tensors")
    if argument(meeting.value, "dim") not in (1, 1 - len(meeting.shape)) or len(meeting.shape) != 4:
        return
    branches = [
        # what stands in it twice would become wider at both places
        _branch(calls, calls.call_at(node), meeting, shape_of(node)[1])
        if operands.count(node) == 1
        else _Branch((), calls.call_at(node), shape_of(node)[1])
        for node in operands
    ]
    if any(each.is_light for each in branches):
        yield from _read_elsewhere(calls, branches)
    for host, members in _shared_out(branches):
        conv = host.convolutions[-1]
        light = [each for each in members if each is not host]
        why = _unfit(calls, conv) or _unfit_way(calls, host)
        for each in light:
            if each.rectified != host.rectified:
                how = "with" if host.rectified else "without"
                why = why or f"its branch ends {how} a ReLU, unlike that of {each.calls[0]}"
            if host.origin is not each.origin:
                why = why or f"its branch begins with another tensor than that of {each.calls[0]}"
            for call in each.calls:
                why = why or ("" if _is_relu(call) else _odd(calls, call))
        extents = [shape_of(each.calls[0].nodes[0].args[0])[2:] for each in light]
        if any(extent != meeting.shape[2:] for extent in extents):
            why = why or "the branches beside it change the extent"
        assert isinstance(conv.layer, nn.Conv2d)
        geometry = _own_geometry(conv.layer)
        if isinstance(geometry, str):
            yield conv.name, why or geometry
        else:
            yield conv.name, why or _widened(host, members, conv, geometry)


def _read_elsewhere(calls: LayerCalls, branches: Sequence[_Branch]) -> Iterator[tuple[str, str]]:
    """The convolutions that would end a branch, if the concatenation alone read them."""
    for call in (each.origin for each in branches if not each.calls):
        end = calls.only_source(call) if call is not None and _is_relu(call) else call
        if call is not None and end is not None and isinstance(end.layer, nn.Conv2d):
            readers = calls.readers(call)
            times = " more than once" if len(readers) == 1 else ""
            yield end.name, f"its output is read by {calls.described(readers)}{times}"


def _widened(
    host: _Branch, members: Sequence[_Branch], conv: LayerCall, geometry: tuple[_PAIR, _PAIR, _PAIR, _PAIR]
) -> Mergeable:
    """The block of a host with the branches beside it, in the order of the channels."""
    light = [each for each in members if each is not host]
    start = sum(each.width for each in members[: members.index(host)])
    bodies = [[call for call in each.calls if not _is_relu(call)] for each in light]
    return Mergeable(
        "branch",
        conv.name,
        tuple(call.name for body in bodies for call in body[1:]),
        tuple(body[0].name for body in bodies),
        tuple(Way(tuple(call.name for call in each.calls)) for each in members),
        Way(tuple(call.name for call in host.calls)),
        range(start, start + host.width),
        host.rectified,
        sum(each.width for each in members),
        *geometry,
    )


def _branch(calls: LayerCalls, call: LayerCall | None, reader: LayerCall, width: int) -> _Branch:
    """The calls before a concatenation that nothing else reads, from the first one on.

    Args:
        calls: of the network.
        call: the last one.
        reader: the concatenation.
        width: of the operand.
    """
    row: list[LayerCall] = []
    while call is not None and calls.readers(call) == [reader] and len(calls.sources(call)) == 1:
        row.append(call)
        reader, call = call, calls.only_source(call)
    return _Branch(tuple(reversed(row)), call, width)


def _shared_out(branches: Sequence[_Branch]) -> Iterator[tuple[_Branch, list[_Branch]]]:
    """Each host that takes others in, with all of its branches, which are neighbours in the concatenation.

    A light branch goes to the nearest host that no heavy branch keeps it from; to the one behind it where two
    are as near, as the 1x1 branch of GoogLeNet to 3x3; what is behind the last host goes to that.
    """
    hosts = [place for place, each in enumerate(branches) if each.is_host]
    taken: list[int | None] = []
    for place, each in enumerate(branches):
        near = [
            (abs(host - place), host < place, host)
            for host in hosts
            if each.is_light and all(branches[other].is_light for other in _between(place, host))
        ]
        taken.append(min(near)[2] if near else place if each.is_host else None)
    for host, group in groupby(range(len(branches)), key=taken.__getitem__):
        members = list(group)
        if host is not None and len(members) > 1:
            yield branches[host], [branches[each] for each in members]


def _between(first: int, second: int) -> range:
    return range(min(first, second) + 1, max(first, second))


# ---- what both have in common ------------------------------------------------------------------------------


def _is_relu(call: LayerCall) -> bool:
    return isinstance(call.layer, nn.ReLU) or (call.layer is None and op_name(call.value) == "relu")


def _is_absorbable(call: LayerCall) -> bool:
    """Whether a call is a layer without products, on images, that a convolution can be fitted to."""
    layer = call.layer
    if isinstance(layer, nn.MaxPool2d):
        return not layer.return_indices and _pair(layer.dilation) == (1, 1)
    return isinstance(layer, nn.AvgPool2d | nn.LocalResponseNorm | _BatchNorm)


def _unfit(calls: LayerCalls, conv: LayerCall) -> str:
    """Why a convolution cannot become another; empty if it can."""
    layer = conv.layer
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        return f"it is a convolution in {layer.groups} groups"
    return calls.oddity(conv)


def _unfit_way(calls: LayerCalls, host: _Branch) -> str:
    """Why a branch cannot be run by itself; empty if it can."""
    first = host.calls[0]
    why = calls.oddity(first)
    if why:
        return f"its branch begins with {first}: {why}"
    for call in host.calls:
        if call.layer is None and not _is_relu(call):
            return f"its branch calls {call} as a function"
        # the training of the block would change it at its other places, too
        if call.layer is not None and call.layer.state_dict() and (why := calls.oddity(call)):
            return f"its branch has {call} within: {why}"
    return ""


def _odd(calls: LayerCalls, call: LayerCall) -> str:
    """Why a layer cannot be taken out; empty if it can."""
    why = calls.oddity(call)
    if not why and isinstance(call.layer, _BatchNorm) and call.layer.running_mean is None:
        why = "it keeps no running statistics, so that it normalises by those of each batch"
    return f"{call} cannot go: {why}" if why else ""


def _kernel(conv: LayerCall) -> tuple[int, ...]:
    """The kernel of a convolution."""
    assert isinstance(conv.layer, nn.Conv2d)
    return conv.layer.kernel_size


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value)
