"""The error of a LeNet against the bytes of its file: ours, published ones, and tiny networks.

`python research/size_curve.py` reads the tables of the study smallest-mnist beside its page and writes
figures/error-bytes.svg there.
"""

import csv
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prunekit.report.style import GREY, INK, PALETTE, clean, drawing_style, figure_svg

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "smallest-mnist"


@dataclass(frozen=True)
class Series:
    """Points of one kind in a panel: which rows of which tables, and how they are drawn."""

    label: str
    tables: tuple[str, ...]
    methods: tuple[str, ...]
    color: str
    marker: str
    joined: bool = True


OURS = ("smallest", "other sizes")
TINY = Series("tiny networks, shifted images", ("tiny.csv",), ("smallest",), GREY, "s", False)
PANELS = {
    "LeNet-300-100": (
        Series(
            "shifted images",
            ("lenet-300-100-shifted.csv", "lenet-300-100-sizes.csv"),
            OURS,
            PALETTE[0],
            "o",
        ),
        Series("plain images", ("lenet-300-100-plain.csv",), ("smallest",), PALETTE[1], "^", False),
        Series(
            "plain images, no teacher",
            ("lenet-300-100-plain.csv",),
            ("smallest, without a teacher",),
            PALETTE[2],
            "v",
            False,
        ),
        TINY,
    ),
    "LeNet-5": (
        Series("shifted images", ("lenet5-shifted.csv", "lenet5-sizes.csv"), OURS, PALETTE[0], "o"),
        Series("plain images", ("lenet5-plain.csv",), ("smallest",), PALETTE[1], "^", False),
        TINY,
    ),
}
PUBLISHED = {
    "LeNet-300-100": {"Deep Compression": (27_000, 1.58), "entropy-penalised": (8_560, 1.9)},
    "LeNet-5": {
        "Deep Compression": (44_000, 0.74),
        "entropy-penalised": (2_840, 1.0),
        "MIRACLE": (3_030, 0.69),
    },
}
"""Bytes and test errors in %: arXiv 1510.00149, 1906.06624, 1810.00440."""

Point = tuple[float, float, float]
"""Bytes, mean test error in %, and its spread over the seeds, zero of one seed."""


def points(rows: Iterable[dict[str, str]]) -> list[Point]:
    """The mean and spread of each recipe, by size; rows of one recipe differ in their seed only.

    Args:
        rows: with `method`, `packed_bytes` and `test_accuracy`, and `cell` or `network` where a method has
            several recipes or networks.
    """
    found = defaultdict(list)
    for row in rows:
        recipe = row["method"], row.get("network", ""), row.get("cell", "")
        found[recipe].append((float(row["packed_bytes"]), 100 * (1 - float(row["test_accuracy"]))))
    drawn = []
    for each in found.values():
        sizes, errors = zip(*each, strict=True)
        spread = statistics.stdev(errors) if len(errors) > 1 else 0.0
        drawn.append((statistics.mean(sizes), statistics.mean(errors), spread))
    return sorted(drawn)


def read(series: Series, folder: Path = FOLDER) -> list[Point]:
    """The points of a series; of tables that are not there none."""
    rows = []
    for name in series.tables:
        if (folder / name).exists():
            with (folder / name).open(newline="", encoding="utf-8") as file:
                rows += [row for row in csv.DictReader(file) if row["method"] in series.methods]
    return points(rows)


def panel(axes: Axes, network: str, series: Sequence[Series]) -> None:
    """Draw one network's points, with those of others as crosses."""
    for each in series:
        found = read(each)
        if not found:
            continue
        sizes, errors, spreads = zip(*found, strict=True)
        line = "-" if each.joined and len(found) > 1 else "none"
        axes.errorbar(
            sizes, errors, yerr=spreads, color=each.color, marker=each.marker, linestyle=line,
            label=each.label, markersize=5, linewidth=1.3, capsize=2,
        )  # fmt: skip
    for name, (size, error) in PUBLISHED[network].items():
        axes.plot(size, error, "x", color=INK, markersize=6)
        right = size > 20_000
        place = {"xytext": (-4 if right else 5, 5), "ha": "right" if right else "left"}
        axes.annotate(name, (size, error), textcoords="offset points", fontsize=8, **place)
    axes.plot([], [], "x", color=INK, label="published")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set(xlim=(300, 90_000), ylim=(0.45, 18), title=network, xlabel="bytes of the whole file")
    axes.xaxis.set_major_locator(FixedLocator([1000, 3000, 10_000, 30_000]))
    axes.yaxis.set_major_locator(FixedLocator([0.5, 0.7, 1, 1.5, 2, 3, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    clean(axes)
    axes.legend(loc="upper right", fontsize=8, frameon=False)


def draw() -> Figure:
    """Both networks beside one another."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    places = figure.subplots(1, 2, sharey=True)
    for axes, (network, series) in zip(places, PANELS.items(), strict=True):
        panel(axes, network, series)
    places[0].set_ylabel("test error (%)")
    return figure


def main() -> None:
    """Write the figure."""
    with drawing_style():
        figure = draw()
        (FOLDER / "figures").mkdir(exist_ok=True)
        (FOLDER / "figures" / "error-bytes.svg").write_text(figure_svg(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
