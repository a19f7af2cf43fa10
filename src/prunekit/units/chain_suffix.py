"""Changes of the error for many variants of a chain at once, computed from the changed layer on.

Where only linear layers and activations follow, variants are products of matrices; else they are stacked
along the batch and run.

A unit's removal is a rank-one change of a linear layer's pre-activation, so that a variant costs what lies
behind and nothing else. Tensors are then (C, features, n): C variants, n examples side by side in memory, in
blocks that stay in the processor's cache from the change to the error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunekit.graph.chain import (
    Function,
    Stage,
    UnitGroup,
    bias_of,
    in_place,
    linear,
    unit_dim,
    weight_of,
    weights_by_unit,
    with_gains,
)
from prunekit.graph.rows import windows
from prunekit.units.runner import CrossEntropyDelta

if TYPE_CHECKING:
    from prunekit.units.chain_runner import ActivationCache

_EXAMPLES = 1000  # in a block: long rows keep the cost per row small
_LIMITS = {
    torch.float32: 80.0,
    torch.float64: 600.0,
}  # exp() of these and of their negatives is finite and > 0


def contributions(
    consumer: Stage, group: UnitGroup, x: Tensor, units: Tensor, factor: Tensor | None = None
) -> Tensor:
    """What units add to the consumer's pre-activation, each multiplied by a factor.

    One product of matrices per unit, with the outputs side by side in memory (channels last): a grouped
    convolution is no faster, and the pooling behind it is several times slower in the other layout.

    Args:
        consumer: a linear layer or a convolution.
        group: the units that it reads.
        x: (n, ...) its input.
        units: (C,) which units.
        factor: (C,); 1 by default.

    Returns:
        (C, n, ...) of the shape of its output.
    """
    module = consumer.module
    weights = weights_by_unit(consumer, group)[units]
    if factor is not None:
        weights = weights * factor.to(weights.dtype).view(-1, *[1] * (weights.dim() - 1))
    if isinstance(module, nn.Linear):
        inputs = torch.unflatten(x, -1, (group.units, group.repeat))[..., units, :].movedim(-2, 0)
        rows = torch.bmm(inputs.flatten(1, -2), weights.transpose(1, 2))
        return torch.unflatten(rows, 1, x.shape[:-1])
    dims = weights.dim() - 3
    # (n, positions..., C, kernel...) -> (C, n, positions..., kernel...)
    read = windows(cast(nn.modules.conv._ConvNd, module), x[:, units])[0].movedim(1 + dims, 0)
    rows = torch.bmm(
        read.reshape(len(units), -1, weights.shape[2:].numel()), weights.flatten(2).transpose(1, 2)
    )
    return rows.view(*read.shape[: 2 + dims], -1).movedim(-1, 2)


def mlp_suffix(now: ActivationCache, place: int, units: Tensor, strength: Tensor, block_bytes: int) -> Tensor:
    """(C,) float64: change of the error, summed over the examples of the pass, for each variant.

    Args:
        now: the activations of the present network.
        place: which link the units belong to; it is flat.
        units: (C,) the unit that a variant changes.
        strength: (C,) 1 less the unit's gain in the variant: 1 = off.
        block_bytes: memory for the variants of one block.
    """
    link, judge = now.links[place], now.judge
    alive = _alive(now, place + 1)
    weights = weights_by_unit(link.consumer, link.group)[units]  # (C, features, repeat)
    z = now.z[place]
    if alive is not None:  # whatever feeds removed units behind need not be known
        weights, z = weights[:, alive], z[alive]
    weights = weights * -strength.to(z.dtype).view(-1, 1, 1)
    x = _rows(now.x[place], units, link.group.units, link.group.repeat)
    is_last = place == len(now.links) - 1 and not link.between
    if is_last and link.group.repeat == 1 and isinstance(judge, CrossEntropyDelta):
        bound = float((x.abs().amax((1, 2)) * weights.abs().amax((1, 2))).max())
        if bound <= _LIMITS.get(z.dtype, 0.0):
            return _cross_entropy(x[:, 0], weights[:, :, 0], z, judge.targets, bound, block_bytes)
    functions, widest = _behind(now, place, len(z))
    changes = torch.zeros(len(units), dtype=torch.float64, device=z.device)
    for which, examples, buffer in _blocks(len(units), z, widest, block_bytes):
        variants = _change(z[:, examples], x[which, :, examples], weights[which], buffer)
        for function in functions:
            variants = function(variants)
        changes[which] += judge.changes(variants, examples.start, examples.stop)
    return changes


def _blocks(variants: int, z: Tensor, widest: int, block_bytes: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """(variants, examples, a buffer (C, features, n) for their pre-activations), examples outermost."""
    features, examples = z.shape
    at_once = -(-examples // -(-examples // _EXAMPLES))
    together = max(1, block_bytes // (z.element_size() * widest * at_once))
    together = -(-variants // -(-variants // together))  # even blocks
    buffer = z.new_empty(together * features * at_once)
    for first in range(0, examples, at_once):
        stop = min(first + at_once, examples)
        for variant in range(0, variants, together):
            last = min(variant + together, variants)
            shape = (last - variant, features, stop - first)
            yield slice(variant, last), slice(first, stop), buffer[: math.prod(shape)].view(shape)


def _change(z: Tensor, x: Tensor, weights: Tensor, out: Tensor) -> Tensor:
    """z (features, n) plus weights (C, features, repeat) times x (C, repeat, n)."""
    if x.shape[1] == 1:
        return torch.addcmul(z.unsqueeze(0), x, weights, out=out)
    return torch.baddbmm(z.unsqueeze(0), weights, x, out=out)


def _rows(x: Tensor, units: Tensor, count: int, repeat: int) -> Tensor:
    """(C, repeat, n): the rows of the units."""
    x = torch.unflatten(x, 0, (count, repeat))
    everything = len(units) == count and bool((units == torch.arange(count, device=units.device)).all())
    return x if everything else x[units]


def _alive(now: ActivationCache, place: int) -> Tensor | None:
    """The indices of the units of the link at `place` that are left; None if all are, or at the end."""
    kept = now.kept.get(now.links[place].group.name) if place < len(now.links) else None
    return None if kept is None or bool(kept.all()) else kept.nonzero().squeeze(1)


def _behind(now: ActivationCache, place: int, width: int) -> tuple[list[Function], int]:
    """What follows a link's consumer, as functions that may overwrite (C, features, n); the features of the
    widest pair of one function's input and output."""
    functions: list[Function] = []
    widest = width
    for number in range(place, len(now.links)):
        functions += map(in_place, now.links[number].between)
        if number + 1 < len(now.links):
            weight, bias = _restricted(now, number + 1)
            widest = max(widest, width + len(weight))
            width = len(weight)
            functions.append(partial(linear, weight, bias))
    return functions, widest


def _restricted(now: ActivationCache, place: int) -> tuple[Tensor, Tensor | None]:
    """A consumer's weight and bias between the units that are left on both sides."""
    weight, bias = weight_of(now.links[place].consumer), bias_of(now.links[place].consumer)
    before, after = _alive(now, place), _alive(now, place + 1)
    if before is not None:
        weight = weight[:, before]
    if after is not None:
        weight, bias = weight[after], None if bias is None else bias[after]
    return weight, bias


def _cross_entropy(
    x: Tensor, weights: Tensor, z: Tensor, targets: Tensor, bound: float, block_bytes: int
) -> Tensor:
    """Cross-entropy where nothing lies between the layer and the softmax.

    With p the present probabilities and c the change of z, the error changes by log(sum_k p_k exp(c_k)) - c_t
    for an example of class t. |c| <= bound, so that no exponential can overflow and none has to be shifted by
    a maximum first. Powers of two are cheaper than exponentials, and the logarithms of many examples are
    taken as one, of their product.

    Args:
        x: (C, n) the variants' units.
        weights: (C, K) what they add to z, with the variant's sign.
        z: (K, n) the present outputs.
        targets: (n,) class numbers.
        bound: at least |x| |weight| of every variant, and at most the logarithm of the greatest number.
        block_bytes: memory for the variants of one block.
    """
    own = x @ F.one_hot(targets, len(z)).to(x.dtype)  # (C, K): sum of x over the examples of each class
    changes = -(own.double() * weights).sum(1)
    log_p = torch.log_softmax(z, 0) / math.log(2)
    weights = (weights / math.log(2)).unsqueeze(2)
    folds = int(math.log2(max(1.0, _LIMITS[z.dtype] / max(bound, 1e-3))))
    for which, examples, buffer in _blocks(len(x), z, len(z), block_bytes):
        torch.addcmul(log_p[:, examples], x[which, None, examples], weights[which], out=buffer)
        sums = buffer.exp2_().sum(1)
        for _ in range(folds):
            half = sums.shape[1] // 2
            if half < 8 or sums.shape[1] % 2:
                break
            sums = sums[:, :half] * sums[:, half:]  # each between exp(-bound) and exp(bound)
        changes[which] += sums.log2_().sum(1).double() * math.log(2)
    return changes


def batched_suffix(
    now: ActivationCache, place: int, units: Tensor, strength: Tensor, block_bytes: int
) -> Tensor:
    """As `mlp_suffix`, of a link that is not flat."""
    link = now.links[place]
    x, z = now.x[place], now.z[place]
    if z.dim() == 4:  # the layout in which the contributions come
        z = z.contiguous(memory_format=torch.channels_last)
    pairs = max(1, block_bytes // link.bytes_behind)
    together = min(len(units), max(1, pairs // 16))
    at_once = min(len(z), max(1, pairs // together))
    changes = torch.zeros(len(units), dtype=torch.float64, device=z.device)
    for first in range(0, len(z), at_once):
        some = slice(first, min(first + at_once, len(z)))
        for variant in range(0, len(units), together):
            which = slice(variant, variant + together)
            changed = contributions(link.consumer, link.group, x[some], units[which], -strength[which])
            changed.add_(z[some])
            outputs = run_behind(now, place, changed.flatten(0, 1), overwrite=True)
            outputs = torch.unflatten(outputs, 0, changed.shape[:2]).flatten(2)
            changes[which] += now.judge.changes(outputs.transpose(1, 2).contiguous(), some.start, some.stop)
    return changes


def run_behind(now: ActivationCache, place: int, y: Tensor, *, overwrite: bool) -> Tensor:
    """From outputs (n, ...) of the consumer at `place`, which may be overwritten, to the network's."""
    for number in range(place, len(now.links)):
        for stage in now.links[number].between:
            y = (in_place(stage) if overwrite else stage.run)(y)
        if number + 1 < len(now.links):
            link = now.links[number + 1]
            gains = now.kept.get(link.group.name)
            if gains is not None and not bool(gains.all()):
                y = with_gains(y, link.group, unit_dim(link.consumer, y), gains)
            y = link.consumer.run(y)
    return y
