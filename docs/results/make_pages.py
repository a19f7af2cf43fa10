"""Writes the tables of figures in the pages of docs/results from the CSV files beside them.

`python docs/results/make_pages.py` writes them, `--check` only says which pages are not current. A table
stands between a comment that says in YAML what is meant, and `<!-- end -->`:

    <!-- figures
    corner: removed            text of the first heading; {dense} stands for the dense network's figure
    table: results.csv         a CSV file beside the page, with a column `seed`
    metric: test_accuracy      its column
    as: error in %             or: % (times 100), x (times), value
    digits: 2                  behind the point
    significant: 3             or fewer of them, so that no more than these are left
    bold: column               what is ahead of all others of its column, or row, by more than the spreads
    rows:
      magnitude, one-shot: magnitude, one-shot
    columns:
      50 %: 0.5
    -->

The label of a row or a column leads to what must hold of a line of the CSV: column and value, in short a
method (a text) or the `sparsity` (a number, to within half a thousandth, or a list of such). `step: last` is
the last step of a recipe and seed, `step: best` the one step of the best mean `validation_accuracy` over the
seeds, the earlier of equal ones. Each may also have `table`, `metric`, `as`, `digits` and `significant` of
its own, and say what is shown of the seeds' values:

    show: mean ± sd            sample standard deviation; the default
    show: mean
    show: each                 the values, in the order of the seeds, - for an empty cell
    show: mean ± sd, each
    show: zeros                how many of them are 0
    show: removed at loss      by seed, how many elements go before more than `loss` of the metric is lost
    show: least                by seed, the least `of` (a column) with the metric `at_most` so much, or -
    minus: dense               the difference from this method, seed by seed

A cell is empty where the CSV has no such method, sparsity or step, or no value of any seed. What a page shows
without a CSV stands between `<!-- no CSV: why -->` and `<!-- end -->`.

A number with a decimal point in the text from "What was seen" on must stand in a table of the page, or be one
of those rounded; else a comment must say where it is from:

    <!-- also said
    as: error in %
    figures:                   of the CSV: one, or the difference of two
      "0.6": [{method: ticket, sparsity: 0.79}, {method: random, sparsity: 0.79}]
    others:                    what no CSV has
      "0.5": the rate of dropout
    -->
"""

from __future__ import annotations

import csv
import functools
import math
import re
import statistics
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

from prunekit.errors import DataError, InputError, naming
from prunekit.plain_yaml import load_yaml

RESULTS = Path(__file__).resolve().parent
MARKED = re.compile(r"(<!-- figures\n(.*?)-->\n).*?(<!-- end -->)", re.DOTALL)
CLOSE = 0.0006
"""Sparsities are equal that differ by no more: half a thousandth and a rounding."""

SCALES: Mapping[str, tuple[float, float]] = {
    **{"value": (0, 1), "x": (0, 1), "%": (0, 100), "error in %": (100, -100)}
}
"""What is added to a value of the CSV and by what it is multiplied before."""

SHOWN = ("mean ± sd", "mean", "each", "mean ± sd, each", "zeros", "removed at loss", "least")
SETTINGS: Mapping[str, Any] = {
    **{"table": "results.csv", "metric": "test_accuracy", "as": "value", "digits": 2, "significant": None},
    **{"show": "mean ± sd", "minus": None, "loss": None, "of": None, "at_most": None},
}
KEYS = {"corner", "bold", "rows", "columns", *SETTINGS}
Line = Mapping[str, str]


@dataclass(frozen=True)
class Figure:
    """The values of one metric by seed, in the unit in which they are shown."""

    values: tuple[float, ...]
    digits: int
    significant: int | None
    show: str
    metric: str
    unit: str

    @property
    def kind(self) -> tuple[str, str]:
        """What must be equal of figures that are compared."""
        return self.metric, self.unit

    @property
    def falls(self) -> bool:
        """Whether less is better, as of errors and losses."""
        return self.unit == "error in %" or not self.metric.endswith(("accuracy", "top5"))

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The sample standard deviation; NaN of one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        each = ", ".join(
            "-" if math.isnan(value) else self._number(value, self._places(value)) for value in self.values
        )
        if self.unit == "elements":
            return ", ".join("-" if math.isnan(value) else f"{value:.0f}" for value in self.values)
        if self.show == "zeros":
            return str(sum(value == 0 for value in self.values))
        if self.show == "each":
            return each
        places = self._places(self.mean)
        text = self._number(self.mean, places) + "x" * (self.unit == "x")
        if self.show == "mean" or len(self.values) == 1:
            return text
        text = f"{text} ± {self._number(self.spread, places)}"
        return f"{text} ({each})" if self.show == "mean ± sd, each" else text

    def _places(self, value: float) -> int:
        if self.significant is None or value == 0:
            return self.digits
        return min(self.digits, max(0, self.significant - 1 - math.floor(math.log10(abs(value)))))

    @staticmethod
    def _number(value: float, places: int) -> str:
        exact = Decimal(repr(round(value, 9))).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)
        return f"{exact + 0:,}"


@functools.cache
def read(path: Path) -> tuple[Line, ...]:
    """The lines of a CSV file."""
    if not path.is_file():
        raise DataError(f"there is no table {path.name} in {path.parent}")
    with path.open(newline="", encoding="utf-8") as file:
        return tuple(csv.DictReader(file))


def chosen(lines: tuple[Line, ...], conditions: Mapping[str, Any]) -> dict[str, Line]:
    """The line of each seed of which the conditions hold; no line at all if there is no such method."""
    unknown = [name for name in conditions if name not in lines[0]]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no column of the table; it has {', '.join(lines[0])}")
    if conditions.get("step") == "best":
        conditions = {**conditions, **_best(lines, conditions)}
    last: dict[tuple[str, str, str], int] = {}
    if conditions.get("step") == "last":
        for line in lines:
            key = (line["method"], line["cell"], line["seed"])
            last[key] = max(last.get(key, 0), int(line["step"]))
    found: dict[str, Line] = {}
    for line in lines:
        if not all(_holds(line, name, value, last) for name, value in conditions.items()):
            continue
        if line["seed"] in found:
            raise InputError(f"more than one line of seed {line['seed']} has {dict(conditions)}")
        found[line["seed"]] = line
    seeds = {line["seed"] for line in lines}
    if found and "seed" not in conditions and found.keys() != seeds:
        raise InputError(f"{dict(conditions)}: the seeds {sorted(seeds - found.keys())} are not in the table")
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


def _best(lines: tuple[Line, ...], conditions: Mapping[str, Any]) -> Line:
    """The step, and cell, of the best mean validation accuracy, as conditions; no step if there is none."""
    others = {name: value for name, value in conditions.items() if name != "step"}
    found: dict[tuple[str, ...], list[float]] = {}
    names = [name for name in ("step", "cell") if name in lines[0]]
    for line in lines:
        if all(_holds(line, *each, {}) for each in others.items()):
            place = tuple(line[name] for name in names)
            found.setdefault(place, []).append(_number_in(line, "validation_accuracy"))
    if not found:
        return {"step": ""}
    best = max(found, key=lambda place: statistics.fmean(found[place]))
    return dict(zip(names, best, strict=True))


def _holds(line: Line, name: str, value: Any, last: Mapping[tuple[str, str, str], int]) -> bool:
    if name == "step" and value == "last":
        return int(line["step"]) == last[line["method"], line["cell"], line["seed"]]
    if name == "sparsity":
        asked = value if isinstance(value, list) else [value]
        return any(abs(float(line[name]) - each) <= CLOSE for each in asked)
    return line[name] == str(value)


def figure(folder: Path, asked: Mapping[str, Any]) -> Figure | None:
    """What one cell of a table shows; None where the CSV has nothing of the kind."""
    settings = {name: asked.get(name, default) for name, default in SETTINGS.items()}
    conditions = {name: value for name, value in asked.items() if name not in SETTINGS}
    if settings["show"] not in SHOWN:
        raise InputError(f"show: {settings['show']!r} is not one of {', '.join(SHOWN)}")
    if settings["as"] not in SCALES:
        raise InputError(f"as: {settings['as']!r} is not one of {', '.join(SCALES)}")
    lines = read(folder / settings["table"])
    metric = settings["metric"]
    if metric not in lines[0]:
        raise InputError(f"metric: {metric!r} is no column of the table; it has {', '.join(lines[0])}")
    if settings["show"] == "removed at loss":
        values = _removed_at_loss(lines, conditions, metric, settings["loss"])
        return Figure(values, 0, None, settings["show"], metric, "elements") if values else None
    if settings["show"] == "least":
        values = _least(lines, conditions, metric, settings["at_most"], settings["of"])
        return Figure(values, 0, None, settings["show"], metric, "elements") if values else None
    found = chosen(lines, conditions)
    if not found or (settings["show"] != "each" and not any(line[metric] for line in found.values())):
        return None
    offset, factor = SCALES[settings["as"]]
    empty = math.nan if settings["show"] == "each" else None
    values = tuple(offset + factor * _number_in(line, metric, empty) for line in found.values())
    if settings["minus"] is not None:
        others = chosen(lines, {"method": settings["minus"]})
        values = tuple(
            factor * (_number_in(found[seed], metric) - _number_in(others[seed], metric)) for seed in found
        )
    shown = (settings["digits"], settings["significant"], settings["show"])
    return Figure(values, *shown, metric, settings["as"])


def _number_in(line: Line, column: str, empty: float | None = None) -> float:
    if not line[column] and empty is not None:
        return empty
    value = float(line[column]) if line[column] else math.nan
    if not math.isfinite(value):
        raise InputError(f"{column} of {line['method']}, seed {line['seed']}, is {line[column]!r}, no number")
    return value


def _removed_at_loss(
    lines: tuple[Line, ...], conditions: Mapping[str, Any], metric: str, loss: float
) -> tuple[float, ...]:
    """By seed, how many elements are gone before the first step that loses more than `loss` of dense."""
    dense = {seed: _number_in(line, metric) for seed, line in chosen(lines, {"method": "dense"}).items()}
    removed: list[float] = []
    for seed, whole in dense.items():
        steps = [line for line in lines if line["seed"] == seed]
        steps = [line for line in steps if all(_holds(line, *each, {}) for each in conditions.items())]
        if not steps:
            return ()
        so_far = 0
        for line in sorted(steps, key=lambda line: int(line["step"])):
            if whole - _number_in(line, metric) > loss + 1e-9:
                break
            so_far = int(line["prunable"]) - int(line["kept"])
        removed.append(so_far)
    return tuple(removed)


def _least(
    lines: tuple[Line, ...], conditions: Mapping[str, Any], metric: str, at_most: float, of: str
) -> tuple[float, ...]:
    """By seed, the least value of a column where the metric is at most so much; NaN if it never is."""
    found: dict[str, float] = {}
    for line in lines:
        if all(_holds(line, *each, {}) for each in conditions.items()):
            reached = float(line[of]) if _number_in(line, metric) <= at_most else math.nan
            found[line["seed"]] = min(reached, found.get(line["seed"], math.nan), key=_nan_last)
    return tuple(found[seed] for seed in sorted(found, key=int))


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def table(folder: Path, text: str) -> str:
    """The Markdown table that a comment asks for; InputError if it cannot be read or leads to nothing."""
    spec = load_yaml(text)
    strange = sorted(set(spec) - KEYS)
    if strange:
        raise InputError(f"unknown key {strange[0]!r}; there are {', '.join(sorted(KEYS))}")
    common = {name: value for name, value in spec.items() if name in SETTINGS}
    rows, columns = (
        {label: _conditions(asked) for label, asked in spec[side].items()} for side in ("rows", "columns")
    )
    cells = {
        (row, column): figure(folder, _merged(common, rows[row], columns[column]))
        for row in rows
        for column in columns
    }
    for side, labels in (("row", rows), ("column", columns)):
        for label in labels:
            if all(found is None for place, found in cells.items() if label == place[side == "column"]):
                raise InputError(f"the {side} {label!r} is empty: the table has no such method or amount")
    bold = _ahead(cells, spec.get("bold"), rows, columns)
    corner = str(spec.get("corner", ""))
    if "{dense}" in corner:
        corner = corner.replace("{dense}", str(figure(folder, {**common, "method": "dense"})))
    written = [_line([corner, *columns]), "|" + "---|" * (1 + len(columns))]
    for row in rows:
        shown = [(cells[row, column], (row, column) in bold) for column in columns]
        written.append(_line([row, *(_cell(found, ahead) for found, ahead in shown)]))
    return "\n".join(written) + "\n"


def _conditions(asked: Any) -> dict[str, Any]:
    if isinstance(asked, str):
        return {"method": asked}
    return {"sparsity": asked} if isinstance(asked, int | float | list) else dict(asked)


def _merged(common: Mapping[str, Any], row: Mapping[str, Any], column: Mapping[str, Any]) -> dict[str, Any]:
    both = sorted(set(row) & set(column))
    if both:
        raise InputError(f"{both[0]!r} is said by a row and by a column")
    return {**common, **row, **column}


def _ahead(
    cells: Mapping[tuple[str, str], Figure | None],
    side: str | None,
    rows: Iterable[str],
    columns: Iterable[str],
) -> set[tuple[str, str]]:
    """The cells ahead of all others of their row or column: mean ± standard deviation touches no other's."""
    if side not in (None, "row", "column"):
        raise InputError(f"bold: {side!r} is neither row nor column")
    groups = [[(row, column) for row in rows] for column in columns] if side == "column" else []
    groups += [[(row, column) for column in columns] for row in rows] if side == "row" else []
    ahead = set()
    for group in groups:
        figures = {place: found for place in group if (found := cells[place]) is not None}
        for place, one in figures.items():
            others = [each for each in figures.values() if each is not one and each.kind == one.kind]
            if others and all(_beyond(one, each) for each in others):
                ahead.add(place)
    return ahead


def _beyond(one: Figure, other: Figure) -> bool:
    gap = other.mean - one.mean if one.falls else one.mean - other.mean
    return gap > one.spread + other.spread


def _cell(found: Figure | None, bold: bool) -> str:
    return "" if found is None else f"**{found}**" if bold else str(found)


def _line(cells: Iterable[str]) -> str:
    return ("| " + " | ".join(cells) + " |").replace("|  |", "| |").replace("|  |", "| |")


def filled(page: Path) -> str:
    """The text of a page with its tables of figures made anew."""

    def made(match: re.Match[str]) -> str:
        with naming(f"{page.parent.name}: the table {match[2].splitlines()[0]!r}"):
            return f"{match[1]}{table(page.parent, match[2])}{match[3]}"

    return MARKED.sub(made, page.read_text(encoding="utf-8"))


WITHOUT = re.compile(r"<!-- no CSV: ([^\n]+) -->\n.*?<!-- end -->", re.DOTALL)
ALSO_SAID = re.compile(r"<!-- also said\n(.*?)-->\n", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.,-])(?<!arXiv )\d[\d,]*\.\d+(?![\w.])")
SPREAD = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)\s+±\s+(\d+(?:\.\d+)?)")
MEASURES = re.compile(r"(train|validation|test)_\w+|sparsity")


def unmarked(page: Path) -> str:
    """The text of a page but for its tables of figures and what is marked to have no CSV."""
    return WITHOUT.sub("", MARKED.sub("", page.read_text(encoding="utf-8")))


def unknown_spreads(page: Path) -> list[str]:
    """Every "mean ± spread" that a page says in its text and that is in none of its CSV files."""
    known = list(_spreads(page.parent))
    unknown = []
    for match in SPREAD.finditer(unmarked(page)):
        error = 0.5 * 10.0 ** -len(match[1].partition(".")[2]) + 1e-9
        mean, spread = (_as_number(number) for number in match.groups())
        if not any(abs(mean - one) <= error and abs(spread - other) <= error for one, other in known):
            unknown.append(match[0])
    return unknown


def unknown_figures(page: Path) -> list[str]:
    """Every number with a decimal point in what a page says of its results that is from nowhere.

    A number that stands in a table by chance is not found, nor are whole numbers.
    """
    whole = page.read_text(encoding="utf-8")
    tables = "".join(match[0][len(match[1]) :] for match in MARKED.finditer(whole))
    known = [_as_number(number) for number in re.findall(r"\d[\d,]*(?:\.\d+)?", tables)]
    comment = ALSO_SAID.search(whole)
    also = load_yaml(comment[1]) if comment else {}
    unmarked_text = unmarked(page)
    results = unmarked_text[max(0, unmarked_text.find("## What was seen")) :]
    said = NUMBER.findall(SPREAD.sub("", ALSO_SAID.sub("", results)))
    common = {name: value for name, value in also.items() if name in SETTINGS}
    figures, others = also.get("figures", {}), also.get("others", {})
    unknown = [f"{number} is not in the text" for number in {**figures, **others} if number not in said]
    for number in dict.fromkeys(said):
        error = 0.5 * 10.0 ** -len(number.partition(".")[2]) + 1e-9
        if number in figures:
            value = _difference(page.parent, [{**common, **asked} for asked in figures[number]])
            if not abs(value - _as_number(number)) <= error:
                unknown.append(f"{number} is {value:.4g}")
        elif number not in others and not any(abs(_as_number(number) - each) <= error for each in known):
            unknown.append(number)
    return unknown


def _difference(folder: Path, asked: list[dict[str, Any]]) -> float:
    """The mean of one figure, or how far those of two are apart; NaN where the CSV has not one of them."""
    means = [found.mean if (found := figure(folder, each)) else math.nan for each in asked]
    return means[0] if len(means) == 1 else abs(means[0] - means[1])


def _as_number(text: str) -> float:
    return float(text.replace(",", ""))


def _spreads(folder: Path) -> Iterable[tuple[float, float]]:
    """Mean and standard deviation over the seeds of every recipe, step and measure below a folder."""
    for path in sorted(folder.rglob("results.csv")):
        groups: dict[tuple[str, ...], list[Line]] = {}
        lines = read(path)
        for line in lines if "cell" in lines[0] else ():
            groups.setdefault((line["method"], line["cell"], line["step"]), []).append(line)
        for group in groups.values():
            for metric in filter(MEASURES.fullmatch, lines[0]):
                values = [float(line[metric]) for line in group if line[metric]]
                if len(values) > 1:
                    mean, spread = statistics.fmean(values), statistics.stdev(values)
                    for offset, factor in SCALES.values():
                        yield offset + factor * mean, abs(factor) * spread


def main(arguments: list[str]) -> int:
    """Write or check all pages; 1 if `--check` finds one that is not current."""
    stale = 0
    for page in sorted(RESULTS.glob("*/README.md")):
        text = filled(page)
        if text != page.read_text(encoding="utf-8"):
            stale += 1
            print(page.relative_to(RESULTS))
            if "--check" not in arguments:
                page.write_text(text, encoding="utf-8")
    return int(bool(stale) and "--check" in arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
