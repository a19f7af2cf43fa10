"""The best method at each compression: which points are compared, which is chosen, what its spread carries.

A method is chosen on validation data and reported on test data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prunekit.report.points import Point, Primary, Spread, dense_of, methods_of

ASKED = (2.0, 4.0, 8.0, 12.0, 20.0, 50.0, 100.0)

#: A point answers for an asked ratio if its own is from 1% below it (weights are whole) to 25% above.
BELOW, ABOVE = 0.99, 1.25

#: Points of one method whose ratios differ by less are one place: there, validation chooses.
SAME_RATIO = 1.01

Verdict = Literal["ahead", "within the spread", "behind on test", "spread unknown", "only method here"]


@dataclass(frozen=True, slots=True)
class Best:
    """The method chosen at one compression.

    ``asked`` only says which points are compared: texts give the ratios of the points themselves.
    ``point`` has the best validation mean of the ``candidates``, a point of each method that has one there,
    and ``runner_up`` the second best. ``verdict`` is about test metrics: 'ahead' only where the spread of the
    chosen method touches that of no other method, there or at a higher ratio; ``rivals`` are the methods
    whose spreads it does touch, or, for 'behind on test', those that lie clear of it on the better side.
    """

    asked: float
    point: Point
    runner_up: Point | None
    candidates: tuple[Point, ...]
    verdict: Verdict
    rivals: tuple[str, ...]

    def test(self, primary: Primary) -> Spread:
        """The test metric of the chosen method."""
        return self.point.values[primary.test]


def point_at(points: Sequence[Point], method: str, asked: float, primary: Primary) -> Point | None:
    """The method's point for an asked ratio, or None.

    It is the point of the smallest ratio in [0.99, 1.25] x asked; of several within 1% of that one (a sweep),
    the one with the best validation mean. Points that diverged do not count.
    """
    inside = [
        point
        for point in points
        if point.method == method
        and BELOW * asked <= point.ratio <= ABOVE * asked
        and point.sparsity > 0
        and _finished(point, primary)
    ]
    if not inside:
        return None
    least = min(point.ratio for point in inside)
    same = [point for point in inside if point.ratio <= SAME_RATIO * least]
    return max(same, key=lambda point: _rank(point, primary))


def _finished(point: Point, primary: Primary) -> bool:
    return point.values[primary.validation].finite and point.values[primary.test].finite


def _rank(point: Point, primary: Primary) -> float:
    mean = point.values[primary.validation].mean
    return mean if primary.higher_is_better else -mean


def _verdict(chosen: Point, others: Sequence[Point], primary: Primary) -> tuple[Verdict, tuple[str, ...]]:
    """What the test metrics allow to be said of the chosen point against all the others."""
    if not others:
        return "only method here", ()
    mine = chosen.values[primary.test]
    touching: list[str] = []
    higher: list[str] = []
    for other in others:
        theirs = other.values[primary.test]
        touches = mine.overlaps(theirs)
        if touches is None:
            return "spread unknown", ()
        if touches:
            touching.append(other.method)
        elif primary.better(theirs.mean, mine.mean) > 0:
            higher.append(other.method)
    if higher:
        return "behind on test", tuple(dict.fromkeys(higher))
    return ("within the spread", tuple(dict.fromkeys(touching))) if touching else ("ahead", ())


def _further(points: Sequence[Point], chosen: Point, primary: Primary) -> list[Point]:
    """Each other method's best point, by validation, among those compressed at least as much as the chosen.

    A method without a point at the asked ratio, or with a worse one there than further on, still refutes a
    lead if it does as well with fewer weights.
    """
    found = []
    for method in methods_of(points):
        further = [
            point
            for point in points
            if method == point.method != chosen.method
            and point.ratio >= BELOW * chosen.ratio
            and _finished(point, primary)
        ]
        if further:
            found.append(max(further, key=lambda point: _rank(point, primary)))
    return found


def asked_ratios(points: Sequence[Point], primary: Primary) -> list[float]:
    """The ratios of ASKED that some method reaches, and those of cells' ends that lie near none of these.

    Of the latter each answers for what lies up to 25% above it.
    """
    reached = [
        ratio for ratio in ASKED if any(point_at(points, m, ratio, primary) for m in methods_of(points))
    ]
    pruned = [point for point in points if point.sparsity > 0 and _finished(point, primary)]
    ends = {(p.method, p.cell): p.ratio for p in sorted(pruned, key=lambda point: point.ratio)}
    own: list[float] = []
    for ratio in sorted(float(f"{end:.3g}") for end in ends.values()):
        if not any(BELOW * asked <= ratio <= ABOVE * asked for asked in (*reached, *own)):
            own.append(ratio)
    return sorted([*reached, *own])


def best_at(points: Sequence[Point], asked: float, primary: Primary) -> Best | None:
    """The best method at one ratio, or None where no method has a point; controls compete like all others."""
    found = [point_at(points, method, asked, primary) for method in methods_of(points)]
    ranked = sorted((p for p in found if p is not None), key=lambda p: -_rank(p, primary))
    if not ranked:
        return None
    chosen, *others = ranked
    further = [*others, *_further(points, chosen, primary)] if others else []
    verdict, rivals = _verdict(chosen, further, primary)
    return Best(asked, chosen, others[0] if others else None, tuple(ranked), verdict, rivals)


def best_table(points: Sequence[Point], primary: Primary) -> list[Best]:
    """A Best for each ratio of ``asked_ratios``."""
    found = (best_at(points, asked, primary) for asked in asked_ratios(points, primary))
    return [best for best in found if best is not None]


def max_compression_within_tolerance(points: Sequence[Point], method: str, primary: Primary) -> Point | None:
    """The method's most compressed point whose test mean loses no more than the tolerance against dense.

    None where it has no such point, and for a control that removes nothing.
    """
    dense = dense_of(points)
    held = [p for p in points if p.method == method and p.sparsity > 0 and primary.holds(p, dense)]
    return max(held, key=lambda point: (point.ratio, _rank(point, primary)), default=None)
