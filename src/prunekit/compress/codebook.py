"""Weight sharing: the nonzero weights of a layer replaced by few values, and a code for each weight."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from prunekit.errors import InputError, shown
from prunekit.extras import imported
from prunekit.settings import WHOLE, whole

MAX_DISTINCT = 1 << 17
"""Distinct values up to which `optimal_kmeans` is exact: its tables have levels x values entries."""

MAX_LEVELS = 1 << 12


@dataclass(frozen=True, eq=False)
class Quantized:
    """A layer whose weights share a few values.

    Code 0 is the value 0, and no centroid's. Negative and positive centroids are counted from zero outwards:
    with centroids -2, -0.5, 1, 3 the codes -2, -1, 0, 1, 2 stand for -2, -0.5, 0, 1, 3.

    Attributes:
        codes: int32, of the layer's shape.
        centroids: float32, ascending, without 0.
    """

    codes: np.ndarray
    centroids: np.ndarray

    def values(self) -> np.ndarray:
        """The weights that the codes stand for; float32, of the layer's shape."""
        negative = int((self.centroids < 0).sum())
        table = np.insert(self.centroids, negative, np.float32(0)).astype(np.float32)
        return table[self.codes + negative]

    def error(self, weights: np.ndarray, importance: np.ndarray | None = None) -> float:
        """The sum of squared changes of the weights, each times its importance."""
        squared = (np.asarray(weights, np.float64) - self.values()) ** 2
        return float((squared if importance is None else squared * importance).sum())


def published_kmeans(weights: Any, levels: int, *, iterations: int = 100) -> Quantized:
    """Weight sharing as Deep Compression publishes it: Lloyd's iterations from linearly spaced centroids.

    The centroids start at equal distances from the least to the greatest nonzero weight. One that loses all
    its members stays where it is and is left out of the result.

    Args:
        weights: of one layer, of any shape; zeros stay zeros and belong to no centroid. Where a centroid
            comes to be 0, its weights become zeros.
        levels: the most centroids.
        iterations: the most of them; they end when no weight changes its centroid.

    Raises:
        InputError: for weights that are not finite in float32, or a number of levels or iterations out of
            range.

    Source: Han, Mao, Dally 2016, arXiv 1510.00149, section 3.
    """
    array, levels = _checked(weights, levels)
    iterations = whole("iterations", iterations, 0, WHOLE)
    present = np.sort(array[array != 0].astype(np.float64))
    if present.size == 0:
        return _assigned(array, present)
    centroids = np.linspace(present[0], present[-1], levels)
    before = None
    for _ in range(iterations):
        bounds = np.searchsorted(present, (centroids[1:] + centroids[:-1]) / 2)
        if before is not None and np.array_equal(bounds, before):
            break
        before = bounds
        edges = np.concatenate([[0], bounds, [present.size]])
        members = np.diff(edges)
        sums = np.diff(np.concatenate([[0.0], np.cumsum(present)])[edges])
        centroids = np.where(members > 0, sums / np.maximum(members, 1), centroids)
    return _assigned(array, centroids)


def optimal_kmeans(weights: Any, levels: int, importance: Any = None) -> Quantized:
    """Weight sharing with the least sum of squared errors: one-dimensional k-means, solved exactly.

    Of a layer with more than `MAX_DISTINCT` distinct weights these are first put into that many bins of equal
    width, each with the mean of its members.

    Args:
        weights: of one layer, of any shape; zeros stay zeros and belong to no centroid. Where a centroid
            comes to be 0, its weights become zeros.
        levels: the most centroids; fewer distinct weights than that are their own centroids.
        importance: non-negative, of the same shape: how much the squared error of each weight counts.

    Raises:
        InputError: for weights that are not finite in float32, an importance that does not fit them, or a
            number of levels out of range.

    Source: Wang, Song 2011, "Ckmeans.1d.dp", The R Journal 3(2), by dynamic programming.
    """
    array, levels = _checked(weights, levels)
    counts = np.ones(array.shape) if importance is None else _array_of(importance)
    if (
        counts.dtype.kind not in "fiu"
        or counts.shape != array.shape
        or not np.isfinite(counts).all()
        or (counts < 0).any()
    ):
        raise InputError(f"importance must be finite, not negative and of the shape {array.shape}")
    counts = counts.astype(np.float64)
    counts /= counts.max(initial=0) or 1  # whose sums could be beyond what a number holds
    present = array != 0
    distinct, where = np.unique(array[present].astype(np.float64), return_inverse=True)
    if distinct.size <= levels:
        return _assigned(array, distinct)
    mass = np.bincount(where, weights=counts[present], minlength=distinct.size)
    if not mass.any():
        mass = np.bincount(where).astype(np.float64)
    # weights without importance have no say in where the centroids are, unless that leaves too few
    said = mass > 0
    distinct, mass = distinct[said], mass[said]
    if distinct.size > MAX_DISTINCT:
        distinct, mass = _binned(distinct, mass)
    if distinct.size <= levels:
        return _assigned(array, distinct)
    # the solver's sums of squares lose digits when values are far from 1
    scale = float(np.abs(distinct).max())
    solver = imported("ckwrap", "Optimal k-means")
    labels = solver.ckmeans(distinct / scale, levels, weights=mass / mass.max()).labels
    sums = np.bincount(labels, weights=mass * (distinct / scale))
    return _assigned(array, sums / np.bincount(labels, weights=mass) * scale)


def on_grid(weights: Any, step: float) -> Quantized:
    """The weights rounded to multiples of a step; those nearer to 0 than half a step become 0.

    Raises:
        InputError: for weights that are not finite in float32, or a step that gives more than `MAX_LEVELS`
            levels, or such as are the same number in float32 or none.
    """
    array, _ = _checked(weights, 1)
    if isinstance(step, bool) or not isinstance(step, Real) or not (math.isfinite(step) and step > 0):
        raise InputError(f"step must be a positive number, not {shown(step)}")
    with np.errstate(over="ignore"):
        rounded = np.rint(array.astype(np.float64) / float(step))
    used, codes = np.unique(rounded, return_inverse=True)
    if used.size > MAX_LEVELS:
        raise InputError(f"a step of {step:g} gives {used.size:,} levels; at most {MAX_LEVELS:,}")
    codes = np.asarray(codes.reshape(array.shape) - int((used < 0).sum()), np.int32)
    if not (used == 0).any():
        codes += codes >= 0
    with np.errstate(over="ignore"):
        centroids = (used[used != 0] * float(step)).astype(np.float32)
    if not (np.isfinite(centroids).all() and centroids.all() and (np.diff(centroids) > 0).all()):
        raise InputError(
            f"a step of {step:g} gives levels that float32 does not hold, or does not tell apart"
        )
    return Quantized(codes, centroids)


def choose_rates(options: Sequence[Sequence[tuple[float, float]]], budget: float) -> list[int]:
    """For each layer the number of the option that it gets, for the least distortion within a budget.

    All layers start with their cheapest option. Then the step to a dearer one that saves most distortion per
    byte is taken, anywhere in the network. Only options on a layer's lower convex hull are ever chosen. So
    up to the first step that the budget has no room for, the result is the best there is for the bytes that
    it takes. That layer stays then, and the steps of others that there is room for are taken: as good as the
    budget to less than one step, though not always the best.

    Args:
        options: per layer (rate, distortion) of each of its options, for example bytes at 2 to 8 bits and the
            squared error.
        budget: the most that the rates may add up to.

    Raises:
        InputError: if the cheapest options of all layers are beyond the budget, a layer has none, or a
            number is not finite.
    """
    if not all(options):
        raise InputError("every layer needs at least one option")
    for number, layer in enumerate(options):
        if not np.isfinite(layer).all():
            raise InputError(f"layer {number}: rates and distortions must be finite numbers")
    if math.isnan(budget):
        raise InputError("the budget must be a number, not nan")
    hulls = [_hull(layer) for layer in options]
    at = [0] * len(hulls)
    spent = sum(layer[hull[0]][0] for layer, hull in zip(options, hulls, strict=True))
    if spent > budget:
        raise InputError(f"the budget is {budget:g}, and the cheapest options add up to {spent:g}")

    def step(number: int) -> tuple[float, int, float] | None:
        hull, layer = hulls[number], options[number]
        if at[number] + 1 == len(hull):
            return None
        now, then = layer[hull[at[number]]], layer[hull[at[number] + 1]]
        return (then[1] - now[1]) / (then[0] - now[0]), number, then[0] - now[0]

    heap = [found for found in map(step, range(len(hulls))) if found is not None]
    heapq.heapify(heap)
    while heap:
        _, number, cost = heapq.heappop(heap)
        if spent + cost > budget:
            continue  # this layer stays; the hull's later options are dearer still
        spent += cost
        at[number] += 1
        found = step(number)
        if found is not None:
            heapq.heappush(heap, found)
    return [hull[place] for hull, place in zip(hulls, at, strict=True)]


def _hull(layer: Sequence[tuple[float, float]]) -> list[int]:
    """The options on the lower convex hull, the cheapest first, with falling distortion."""
    hull: list[int] = []
    for number in sorted(range(len(layer)), key=lambda number: layer[number]):
        rate, distortion = layer[number]
        if hull and distortion >= layer[hull[-1]][1]:
            continue
        while len(hull) > 1:
            (rate_0, lost_0), (rate_1, lost_1) = layer[hull[-2]], layer[hull[-1]]
            if (lost_1 - lost_0) * (rate - rate_0) < (distortion - lost_0) * (rate_1 - rate_0):
                break
            hull.pop()
        hull.append(number)
    return hull


def _checked(weights: Any, levels: int) -> tuple[np.ndarray, int]:
    array = _array_of(weights)
    if (
        array.dtype.kind not in "fiu"
        or not (np.abs(array.astype(np.float64)) <= np.finfo(np.float32).max).all()
    ):
        raise InputError("weights must be real numbers, finite in float32")
    return array, whole("levels", levels, 1, MAX_LEVELS)


def _array_of(value: Any) -> np.ndarray:
    """An array, also of a parameter, or of a tensor on another device or of a type that NumPy lacks."""
    if not isinstance(value, Tensor):
        return np.asarray(value)
    value = value.detach().cpu()
    return (value.float() if value.dtype.is_floating_point and value.dtype.itemsize < 4 else value).numpy()


def _binned(distinct: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = (distinct - distinct[0]) / (distinct[-1] - distinct[0])
    bins = np.minimum((share * MAX_DISTINCT).astype(np.int64), MAX_DISTINCT - 1)
    merged = np.bincount(bins, weights=mass)
    means = np.bincount(bins, weights=mass * distinct)[merged > 0] / merged[merged > 0]
    return means, merged[merged > 0]


def _assigned(array: np.ndarray, centroids: np.ndarray) -> Quantized:
    """Each nonzero weight with its nearest centroid; centroids without members, and 0, are left out."""
    table = np.unique(np.asarray(centroids, np.float64).astype(np.float32))
    codes = np.zeros(array.shape, np.int32)
    present = array != 0
    exact = table.astype(np.float64)
    nearest = np.searchsorted((exact[1:] + exact[:-1]) / 2, array[present].astype(np.float64))
    used, nearest = np.unique(nearest, return_inverse=True)
    table = table[used]
    signed = nearest - int((table < 0).sum())
    if not (table == 0).any():  # else its members have the code 0
        signed += signed >= 0
    codes[present] = signed
    return Quantized(codes, table[table != 0])
