"""N2PS beside magnitude and layer-wise OBS: accuracy against the share of the weights that is left.

`python research/removal_curves.py` reads the tables of the study n2ps-mnist and writes, beside them,
curves.csv and figures/accuracy-left.svg. Where units go, what is left is counted in the weights that they
leave; every curve begins at the dense network and is read at the same shares, on straight lines between the
steps of the method, so that none rises more often because it has more steps.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from prunekit.report.style import drawing_style, figure_svg, looks_of

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "results" / "n2ps-mnist"
TABLES = {"rectified": "results.csv", "logistic": "logistic-l2.csv"}
METHODS = (
    "exact L-OBS",
    "L-OBS every 4,000",
    "magnitude",
    "n2ps, fine steps",
    "random as n2ps, fine steps",
    "random weights",
)
SHARES = (*(round(1 - 0.04 * step, 2) for step in range(25)), 0.02, 0.01)
"""The shares of the weights at which curves are read."""

AT = (0.8, 0.6, 0.4, 0.2, 0.1, 0.04, 0.02)
LOSS = 0.01
"""A curve has left its first accuracy where it is lower by more."""

Curve = Sequence[tuple[float, float]]
"""Pairs of a share of the weights that is left and the accuracy there."""


def left_at(curve: Curve, loss: float = LOSS) -> float:
    """The least share of a curve before its first accuracy that is lower by more than the loss."""
    falling = sorted(curve, reverse=True)
    least = falling[0][0]
    for share, accuracy in falling:
        if accuracy < falling[0][1] - loss - 1e-9:
            break
        least = share
    return least


def rises(accuracies: Sequence[float]) -> float:
    """By how much accuracies rise in all, from each to the next: zero of a curve that only falls."""
    return float(np.diff(accuracies).clip(min=0).sum())


def read_at(curve: Curve, shares: Sequence[float]) -> list[float]:
    """The accuracies at these shares, on straight lines between the points of the curve."""
    places, accuracies = zip(*sorted(curve), strict=True)
    return [float(each) for each in np.interp(shares, places, accuracies)]


def curves(table: Path) -> Mapping[tuple[str, int], Curve]:
    """The curve of each method and seed in a results.csv."""
    found: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    with table.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            point = 1 / float(line["compression_ratio"]), float(line["test_accuracy"])
            found[line["method"], int(line["seed"])].append(point)
    return {
        (method, seed): [*found["dense", seed], *points]
        for (method, seed), points in found.items()
        if method in METHODS
    }


def draw(found: Mapping[tuple[str, int], Curve]) -> Figure:
    """Mean and spread of the curves of every method."""
    looks = looks_of(METHODS, METHODS[-1], ())
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    axes = figure.add_subplot()
    for method in METHODS:
        each = [read_at(curve, SHARES) for (name, _), curve in found.items() if name == method]
        mean, spread = 100 * np.mean(each, axis=0), 100 * np.std(each, axis=0, ddof=1)
        left, band = 100 * np.array(SHARES), (mean - spread, mean + spread)
        axes.plot(left, mean, label=method, **looks[method].line)
        axes.fill_between(left, *band, color=looks[method].color, alpha=0.13, linewidth=0)
    axes.set(xlim=(102, -1), ylim=(0, 102), xlabel="weights left (%)", ylabel="test accuracy (%)")
    axes.legend(loc="lower left", fontsize=8.5, frameon=False)
    return figure


def main() -> None:
    """Write the table and the figure."""
    networks = {network: curves(FOLDER / table) for network, table in TABLES.items()}
    with (FOLDER / "curves.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("network", "method", "seed", "left", "rises", *(f"at_{share}" for share in AT)))
        for network, found in networks.items():
            for (method, seed), curve in found.items():
                measures = [left_at(curve), rises(read_at(curve, SHARES)), *read_at(curve, AT)]
                writer.writerow((network, method, seed, *(f"{each:.6f}" for each in measures)))
    with drawing_style():
        figure = draw(networks["rectified"])
        (FOLDER / "figures").mkdir(exist_ok=True)
        (FOLDER / "figures" / "accuracy-left.svg").write_text(figure_svg(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
