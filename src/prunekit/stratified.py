"""Stratified sampling of the connections that stay, more of them from the stronger half of their kind."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from math import floor

import torch
from torch import Tensor

_GRAINS = 2**20
"""How finely the starting point of the running sums is drawn."""


def stratified_sample(
    values: Tensor, available: Tensor, kept: int, strong: float, generator: torch.Generator
) -> Tensor:
    """Which connections stay: a share of the strong half of each kind, the rest of the weak half.

    A kind is the available connections of one row whose values have one sign; zero counts as positive. Of K
    of them, sorted by |value|, the first half (the larger one, if K is odd) is strong. With the density
    S = kept / all that are available, strong S K are drawn from it and (1 - strong) S K from the weak half,
    each at the same odds. What a half cannot give the other one does.

    Where these numbers are not whole, each row gets a whole number next to its S K, its strong halves one
    next to their share of that, and of each of these the positive kind one next to its own; always so that
    the running sums over the rows are next to those of the exact numbers. No row with S K >= 1 is thus left
    without a connection. Where the sums start is drawn, too.

    Args:
        values: (rows, columns) correlations.
        available: (rows, columns) booleans, True for connections that can be kept.
        kept: how many stay, at most as many as are available.
        strong: the share that the strong halves are to have, in [0, 1].
        generator: on the CPU; the source of the draw.

    Returns:
        (rows, columns) booleans, exactly `kept` of them True; on the device of `values`.
    """
    device, rows = values.device, len(values)
    values, available = values.cpu().double(), available.cpu()
    kind = 2 * torch.arange(rows).unsqueeze(1) + (values < 0)
    kind = kind[available]
    sizes = torch.bincount(kind, minlength=2 * rows)
    rank = _ranks(kind, values.abs()[available].neg(), sizes)
    box = 2 * kind + (rank >= (sizes[kind] + 1) // 2)
    counts = torch.tensor(_counts(sizes.view(-1, 2).tolist(), kept, strong, generator)).flatten()
    chances = torch.rand(len(box), generator=generator, dtype=torch.float64)
    drawn = _ranks(box, chances, torch.bincount(box, minlength=4 * rows)) < counts[box]
    found = torch.zeros_like(available)
    found[available] = drawn
    return found.to(device)


def _ranks(group: Tensor, values: Tensor, sizes: Tensor) -> Tensor:
    """The place of each value among those of its group, from 0; ties by position."""
    order = values.argsort(stable=True)
    order = order[group[order].argsort(stable=True)]
    places = torch.arange(len(group)) - (sizes.cumsum(0) - sizes)[group[order]]
    return torch.empty_like(places).scatter_(0, order, places)


def _counts(
    sizes: list[list[int]], kept: int, strong: float, generator: torch.Generator
) -> list[list[tuple[int, int]]]:
    """How many stay of the (strong, weak) half of the positive and the negative kind of each row."""
    totals = [sum(kinds) for kinds in sizes]
    density = Fraction(kept, max(sum(totals), 1))
    share = Fraction(str(strong))  # as it was written: 0.7 is seven tenths
    of_rows = _whole([density * total for total in totals], generator)
    limits = [[((size + 1) // 2, size // 2) for size in kinds] for kinds in sizes]
    first = _whole(
        [
            _between(count - plus[1] - minus[1], share * count, plus[0] + minus[0])
            for count, (plus, minus) in zip(of_rows, limits, strict=True)
        ],
        generator,
    )
    second = [count - part for count, part in zip(of_rows, first, strict=True)]
    positive = []
    for half, counts in enumerate((first, second)):
        wanted = [
            _between(count - minus[half], Fraction(count * kinds[0], max(sum(kinds), 1)), plus[half])
            for count, kinds, (plus, minus) in zip(counts, sizes, limits, strict=True)
        ]
        positive.append(_whole(wanted, generator))
    return [
        [(plus, weak_plus), (count - plus, rest - weak_plus)]
        for count, rest, plus, weak_plus in zip(first, second, *positive, strict=True)
    ]


def _between(least: int, number: Fraction, most: int) -> Fraction:
    return min(max(number, Fraction(least)), Fraction(most))


def _whole(numbers: Iterable[Fraction], generator: torch.Generator) -> list[int]:
    """Whole numbers, each next to one of these, whose running sums are next to theirs."""
    before = Fraction(int(torch.randint(_GRAINS, (), generator=generator)), _GRAINS)
    found = []
    for number in numbers:
        after = before + number
        found.append(floor(after) - floor(before))
        before = after
    return found
