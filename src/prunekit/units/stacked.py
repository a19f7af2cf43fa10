"""Variants of a network behind any layer: stacked along the batch and run from that layer on."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.units.flow import Pass
from prunekit.units.judge import Judge
from prunekit.units.layers import contributions, pointwise, unit_dim, with_gains


def stacked_changes(
    now: Pass, place: int, units: Tensor, strength: Tensor, judge: Judge, block_bytes: int, bytes_each: int
) -> Tensor:
    """(C,) float64: change of the error, summed over the examples of the pass, for each variant.

    Args:
        now: the activations of the present network.
        place: which link the units belong to.
        units: (C,) the unit that a variant changes.
        strength: (C,) 1 less the unit's gain in the variant: 1 = off.
        judge: judges the pass's outputs.
        block_bytes: memory for the variants of one block.
        bytes_each: what one variant of one example needs.
    """
    link = now.links[place]
    x, z = now.x[place], now.z[place]
    if link.flat:
        x, z = x.T, z.T
    if z.dim() == 4:  # the layout in which the contributions come
        z = z.contiguous(memory_format=torch.channels_last)
    pairs = max(1, block_bytes // bytes_each)
    together = min(len(units), max(1, pairs // 16))
    at_once = min(len(z), max(1, pairs // together))
    changes = torch.zeros(len(units), dtype=torch.float64, device=z.device)
    for first in range(0, len(z), at_once):
        some = slice(first, min(first + at_once, len(z)))
        for variant in range(0, len(units), together):
            which = slice(variant, variant + together)
            changed = contributions(link.consumer, link.group, x[some], units[which], -strength[which])
            changed.add_(z[some])
            outputs = run_behind(now, place, changed.flatten(0, 1))
            outputs = torch.unflatten(outputs, 0, changed.shape[:2]).flatten(2)
            changes[which] += judge.changes(outputs.transpose(1, 2).contiguous(), some.start, some.stop)
    return changes


def run_behind(now: Pass, place: int, y: Tensor, *, in_place: bool = True) -> Tensor:
    """From outputs (n, ...) of the consumer at `place`, overwritten if `in_place`, to the network's."""
    for number in range(place, len(now.links)):
        for stage in now.links[number].between:
            y = ((in_place and pointwise(stage)) or stage.run)(y)
        if number + 1 < len(now.links):
            link = now.links[number + 1]
            gains = now.kept.get(link.group.name)
            if gains is not None and not bool(gains.all()):
                y = with_gains(y, link.group, unit_dim(link.consumer, y), gains)
            y = link.consumer.run(y)
    return y
