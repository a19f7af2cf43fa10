"""Drawing the connections that stay by lot, more of them from the stronger half of their kind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

_GRAINS = 2**20
"""How finely the starting point of the running sums is drawn."""


def draw_halves(
    values: Tensor, available: Tensor, kept: int, strong: float, generator: torch.Generator
) -> Tensor:
    """Which connections stay: a share of the strong half of each kind, the rest of the weak half.

    A kind is the available connections of one row whose values have one sign; zero counts as positive. Of K
    of them, sorted by |value|, the first half (the larger one, if K is odd) is strong. With the density
    S = kept / all that are available, strong S K are drawn from it and (1 - strong) S K from the weak half,
    each at the same odds. What a half cannot give the other one of its kind does. Where these numbers are not
    whole, those next to them are taken so that their running sums over the strong halves of all rows, and
    then over the weak ones, are next to those of the exact numbers; where the sums start is drawn, too.

    Args:
        values: (rows, columns) correlations.
        available: (rows, columns) booleans, True for connections that can be kept.
        kept: how many stay, at most as many as are available.
        strong: the share that the strong halves are to have, in [0, 1].
        generator: on the CPU; the source of the lots.

    Returns:
        (rows, columns) booleans, exactly `kept` of them True; on the device of `values`.
    """
    device, rows = values.device, len(values)
    values, available = values.cpu().double(), available.cpu()
    # four boxes for each row, strong halves of all rows first
    kind = torch.arange(rows).unsqueeze(1) + rows * (values < 0)
    kind = kind[available]
    sizes = torch.bincount(kind, minlength=2 * rows)
    rank = _ranks(kind, values.abs()[available].neg(), sizes)
    box = kind + 2 * rows * (rank >= (sizes[kind] + 1) // 2)
    first, second = zip(*_targets(sizes.tolist(), kept, strong), strict=True)
    start = Fraction(int(torch.randint(_GRAINS, (), generator=generator)), _GRAINS)
    counts = torch.tensor(list(_whole((*first, *second), start)))
    lots = torch.rand(len(box), generator=generator, dtype=torch.float64)
    drawn = _ranks(box, lots, torch.bincount(box, minlength=4 * rows)) < counts[box]
    found = torch.zeros_like(available)
    found[available] = drawn
    return found.to(device)


def _ranks(group: Tensor, values: Tensor, sizes: Tensor) -> Tensor:
    """The place of each value among those of its group, from 0; ties by position."""
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    places = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
    return torch.empty_like(places).scatter_(0, order, places)


def _targets(sizes: list[int], kept: int, strong: float) -> Iterator[tuple[Fraction, Fraction]]:
    """What is wanted of the strong and of the weak half of each kind of these sizes; in all it is `kept`."""
    density = Fraction(kept, max(sum(sizes), 1))
    share = Fraction(str(strong))  # as it was written: 0.7 is seven tenths
    for size in sizes:
        larger, wanted = (size + 1) // 2, density * size
        first = min(max(share * wanted, wanted - size // 2), Fraction(larger))
        yield first, wanted - first


def _whole(numbers: Iterable[Fraction], start: Fraction) -> Iterator[int]:
    """Whole numbers, each next to one of these, whose running sums are next to theirs."""
    before = start
    for number in numbers:
        after = before + number
        yield floor(after) - floor(before)
        before = after
