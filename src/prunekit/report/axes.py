"""Axes of a curve: quantities across (x) and measured (y), their limits and ticks."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from prunekit.report.format import Primary, format_number, times
from prunekit.report.points import Point


@dataclass(frozen=True, slots=True)
class Across:
    """A horizontal axis; ``of(point, dense)`` is the place of a point, None where it has none."""

    key: Literal["sparsity", "ratio", "speedup"]
    label: str
    words: str
    of: Callable[[Point, Point], float | None]

    @property
    def log(self) -> bool:
        """True for the ratios, which are read in factors."""
        return self.key != "sparsity"


@dataclass(frozen=True, slots=True)
class Measured:
    """A vertical axis: a column, its unit and how it is shown. ``complement`` shows 1 - value (an error)."""

    key: str
    column: str
    label: str
    log: bool
    higher_is_better: bool
    percent: bool = False
    complement: bool = False

    def of(self, point: Point) -> tuple[float, float | None] | None:
        """Mean and standard deviation in the axis's unit; None if the column is empty or a run diverged."""
        spread = point.values.get(self.column)
        if spread is None or not spread.finite:
            return None
        factor = 100.0 if self.percent else 1.0
        mean = 1 - spread.mean if self.complement else spread.mean
        return factor * mean, None if spread.sd is None else factor * spread.sd

    def show(self, mean: float, sd: float | None) -> str:
        """'97.21 ± 0.31%'."""
        text = (lambda v: f"{v:.2f}") if self.percent else format_number
        return text(mean) + ("" if sd is None else f" ± {text(sd)}") + ("%" if self.percent else "")


def _speedup(point: Point, dense: Point) -> float | None:
    there, here = dense.values.get("macs"), point.values.get("macs_nonzero")
    return there.mean / here.mean if there is not None and here is not None and here.mean > 0 else None


SPARSITY = Across(
    "sparsity", "removed of the original count (%)", "the share removed", lambda p, _: 100 * p.sparsity
)
RATIO = Across("ratio", "compression (original count / kept)", "compression", lambda p, _: p.ratio)
SPEEDUP = Across(
    "speedup",
    "theoretical speed-up (MACs of dense / MACs with nonzero weights)",
    "theoretical speed-up",
    _speedup,
)

LOSS = Measured("loss", "test_loss", "test loss (log scale)", log=True, higher_is_better=False)


def quality_of(primary: Primary) -> tuple[Measured, Measured]:
    """The primary measure as such, and as an error on a logarithmic axis."""
    if primary.higher_is_better:
        return (
            Measured("accuracy", primary.test, "test accuracy (%)", False, True, percent=True),
            Measured(
                "error", primary.test, "test error (%, log scale)", True, False, percent=True, complement=True
            ),
        )
    return (
        Measured("mse", primary.test, "test mean squared error", False, False),
        Measured("mse-log", primary.test, "test mean squared error (log scale)", True, False),
    )


def format_point(point: Point) -> str:
    """Where a point stands: '8.0x, 87.5% removed'."""
    return f"{times(point.ratio)}, {100 * point.sparsity:.1f}% removed"


def linear_limits(
    dense: tuple[float, float], values: Sequence[tuple[float, float]], higher_is_better: bool, percent: bool
) -> tuple[float, float]:
    """Limits of a linear axis in which differences near dense can be read.

    ``dense`` and ``values`` are (mean, spread). A few collapsed points must not squeeze all the others into
    a line at the top: the axis ends at the worst point, or at three times the median loss (and at least 3
    points, or half of the dense error) from dense if that is nearer.
    """
    flip = 1.0 if higher_is_better else -1.0
    base = dense[0]
    losses = [flip * (base - mean) for mean, _ in values]
    floor = 3.0 if percent else 0.5 * abs(base) or 1.0
    room = max(floor, 3 * statistics.median(losses or [0.0]))
    worst = max([flip * (base - mean) + sd for mean, sd in values] + [dense[1], 0.0])
    best = min([flip * (base - mean) - sd for mean, sd in values] + [-dense[1], 0.0])
    down = min(worst, room)
    # Nor must a tenth of a point fill the picture: the axis spans a point, or a tenth of the dense error.
    down = max(down, best + (1.0 if percent else 0.1 * abs(base) or 0.1))
    pad = 0.06 * (down - best)
    low, high = sorted((base - flip * (down + pad), base - flip * (best - pad)))
    return low, high


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis around all positive values, at least a factor of 1.5 apart."""
    positive = [value for value in values if value > 0] or [1.0]
    low, high = min(positive), max(positive)
    pad = max((high / low) ** 0.06, 1.02)
    if high / low < 1.5:
        pad = max(pad, math.sqrt(1.5 * low / high))
    return low / pad, high * pad
