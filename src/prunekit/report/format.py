"""The primary metric, its unit, and numbers as a reader expects them."""

from dataclasses import dataclass
from typing import Literal

from prunekit.report.points import Spread

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Primary:
    """The metric by which methods are compared: chosen on ``validation``, reported on ``test``."""

    test: str
    validation: str
    name: str
    higher_is_better: bool

    def better(self, a: float, b: float) -> float:
        """By how much a is better than b, in the metric's own unit; negative where it is worse."""
        return a - b if self.higher_is_better else b - a

    def tolerance(self, dense: Spread) -> float:
        """What counts as no loss: 0.5 points of accuracy or 5% of the error, or one spread if more."""
        floor = 0.005 if self.higher_is_better else 0.05 * dense.mean
        return max(floor, dense.sd or 0.0)

    def format_tolerance(self, dense: Spread) -> str:
        """The tolerance as text: '0.50 points', or '5.0%' of a squared error."""
        return self.gap(self.tolerance(dense), dense.mean)

    def show(self, value: float) -> str:
        """'97.21%' for an accuracy, three digits for an error."""
        if value != value or abs(value) == float("inf"):
            return "diverged"
        return f"{100 * value:.2f}%" if self.higher_is_better else format_number(value)

    def show_spread(self, spread: Spread | None) -> str:
        """'97.21 ± 0.31%', or the mean alone where there is one seed; a dash for no value."""
        return "–" if spread is None else _with_spread(spread, percent=self.higher_is_better)

    def gap(self, value: float, reference: float) -> str:
        """A difference without its sign: points of accuracy, or percent of the reference error."""
        if self.higher_is_better:
            return f"{100 * abs(value):.2f} points"
        return f"{100 * abs(value / reference):.1f}%" if reference else format_number(abs(value))

    def change(self, value: float, reference: float) -> str:
        """The signed change from the reference to the value, as written: '+0.20', or '+3.1%' for an error."""
        difference = value - reference
        if self.higher_is_better:
            return signed(100 * difference, 2)
        return f"{signed(100 * difference / reference, 1)}%" if reference else signed(difference, 3)


ACCURACY = Primary("test_accuracy", "validation_accuracy", "test accuracy", True)
MSE = Primary("test_mse", "validation_mse", "test mean squared error", False)


def primary_of(column: Literal["test_accuracy", "test_mse"]) -> Primary:
    """The primary metric of a study by its column."""
    return ACCURACY if column == "test_accuracy" else MSE


def overlap(a: Spread, b: Spread) -> bool | None:
    """Whether mean ± one standard deviation of a and b touch; None where a spread is unknown (one seed)."""
    if a.sd is None or b.sd is None:
        return None
    return abs(a.mean - b.mean) <= a.sd + b.sd


def _with_spread(spread: Spread, percent: bool) -> str:
    if not spread.finite:
        return "diverged"
    factor, digits, unit = (100.0, 2, "%") if percent else (1.0, None, "")

    def text(value: float) -> str:
        return format_number(value) if digits is None else f"{factor * value:.{digits}f}"

    return text(spread.mean) + ("" if spread.sd is None else f" ± {text(spread.sd)}") + unit


def percent_spread(spread: Spread | None) -> str:
    """A fraction over seeds as percent, '97.21 ± 0.31%'; a dash for no value."""
    return "–" if spread is None else _with_spread(spread, percent=True)


def plain_spread(spread: Spread | None) -> str:
    """A loss over seeds, '0.0912 ± 0.0040'; a dash for no value."""
    return "–" if spread is None else _with_spread(spread, percent=False)


def format_number(value: float) -> str:
    """Three significant digits, in plain digits where that stays short."""
    size = abs(value)
    if 1e3 <= size < 1e6:
        return f"{value:.0f}"
    return f"{value:#.3g}".removesuffix(".") if size == 0 or 1e-4 <= size < 1e3 else f"{value:.3g}"


def signed(value: float, digits: int) -> str:
    """A signed number with a real minus sign; what rounds to zero has no sign."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def times(ratio: float) -> str:
    """A compression ratio: '2x', '4.2x', '12x'."""
    text = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return text.removesuffix(".0") + "x"


def count(value: float | None) -> str:
    """A large number in short: '950', '12.3 k', '4.56 M'; a dash for none."""
    if value is None:
        return "–"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= 0.9995 * size:  # 999 900 is 1 M, not 1000 k
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f}"


def names(items: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else ""
