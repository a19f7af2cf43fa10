"""The sensitivity of each layer: what a metric becomes when it alone is pruned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.display import Displayed, some_rows
from prunekit.errors import InputError
from prunekit.extras import imported
from prunekit.files import file_to_write, to_csv, write_text
from prunekit.parts.allocation import without_lowest
from prunekit.pruning.step_work import StepWork
from prunekit.settings import number

Metric = Callable[[nn.Module], float]
"""Measures a network: its accuracy, for example."""


@dataclass(frozen=True)
class SensitivityCurves(Displayed):
    """A metric of a network of which one layer (or group of units) is pruned, all else being as it was.

    Attributes:
        metric: its name.
        dense: its value where nothing more is pruned.
        sparsities: at which each layer was tried, increasing.
        sizes: by layers how many weights (or units) they have.
        removed: by layers how many of these were removed at each sparsity.
        values: by layers the metric at each sparsity.
    """

    metric: str
    dense: float
    sparsities: tuple[float, ...]
    sizes: Mapping[str, int]
    removed: Mapping[str, tuple[int, ...]]
    values: Mapping[str, tuple[float, ...]]

    def __repr__(self) -> str:
        layers, tried = len(self.values), len(self.sparsities)
        return (
            f"<SensitivityCurves: {self.metric} of {layers:,} layer{'s' if layers != 1 else ''} at {tried} "
            f"sparsit{'ies' if tried != 1 else 'y'}, {self.dense:.4g} dense>"
        )

    def __str__(self) -> str:
        return "\n".join([f"{self.metric}, {self.dense:.4g} dense", *some_rows(self.to_table())])

    def to_table(self) -> list[tuple[str, ...]]:
        """A heading and a row for each layer, as people read them."""
        heading = ("layer", "size", *(f"{100 * each:.4g}%" for each in self.sparsities))
        rows = (
            (name, f"{self.sizes[name]:,}", *(f"{value:.4g}" for value in values))
            for name, values in self.values.items()
        )
        return [heading, *rows]

    def to_rows(self) -> list[dict[str, Any]]:
        """One plain mapping for each point of each curve, for JSON or a data frame; each begins dense."""
        rows = []
        for name, size in self.sizes.items():
            points = zip((0, *self.removed[name]), (self.dense, *self.values[name]), strict=True)
            for removed, value in points:
                share = {"layer": name, "size": size, "removed": removed, "sparsity": removed / size}
                rows.append({**share, "metric": self.metric, "value": value})
        return rows

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as a CSV file.

        Raises:
            OSError: if it cannot be written; what was there before is left then.
        """
        rows = self.to_rows()
        write_text(file_to_write(path), to_csv(rows[0], rows))

    def plot(self, ax: Any = None) -> Any:
        """The curves over the sparsity that each layer has, and a line where the dense network is.

        Args:
            ax: the axes of matplotlib that are drawn on; by default those of a new figure.

        Returns:
            Their figure, with `savefig`.

        Raises:
            InputError: where matplotlib is not installed.
        """
        if ax is None:
            figures = imported("matplotlib.figure", "SensitivityCurves.plot")
            ax = figures.Figure(layout="constrained").subplots()
        rows = self.to_rows()
        for name in self.values:
            points = [row for row in rows if row["layer"] == name]
            sparsities, values = ([point[key] for point in points] for key in ("sparsity", "value"))
            ax.plot(sparsities, values, marker=".", label=name)
        ax.axhline(self.dense, color="gray", linewidth=0.8, linestyle=":")
        ax.set_xlabel("sparsity of the layer")
        ax.set_ylabel(self.metric)
        ax.legend(fontsize="small")
        return ax.figure


def measure_sensitivity(
    work: StepWork, model: nn.Module, sparsities: Sequence[float], metric: Metric | None
) -> SensitivityCurves:
    """Prune each layer alone, measure, and put it back; see `Session.sensitivity`."""
    tried = tuple(number("sparsities", each, 0, 1) for each in sparsities)
    if not tried or any(later <= earlier for earlier, later in pairwise((0.0, *tried, 1.0))):
        raise InputError(f"sparsities = {list(sparsities)}: they must increase, above 0 and below 1")
    if work.recipe.granularity.even:
        raise InputError(
            f"the granularity {work.recipe.granularity.name!r} removes one share of every layer: the "
            "sensitivity is that of single weights or units"
        )
    if metric is None and work.calibration.data is None:
        raise InputError("the sensitivity is the loss on data: give the session some, or a metric")
    kept = work.state.kept
    # also where an order takes one layer at a time
    context = work.scored(work.context(replace(work.plan.steps[0], layers=tuple(kept))))

    def measured() -> float:
        return work.calibration.mean_loss() if metric is None else float(metric(model))

    removed: dict[str, tuple[int, ...]] = {}
    values: dict[str, tuple[float, ...]] = {}
    with torch.no_grad():
        dense = measured()
        for name in kept:
            lost, found = [], []
            for sparsity in tried:
                flags = without_lowest(context.scores[name], kept[name], sparsity)
                lost.append(int((~flags).sum()))
                with work.calibration.masked(kept.replace({name: flags})):
                    found.append(measured())
            removed[name], values[name] = tuple(lost), tuple(found)
    sizes = {name: each.numel() for name, each in kept.items()}
    called = "loss" if metric is None else getattr(metric, "__name__", type(metric).__name__)
    return SensitivityCurves(called, dense, tried, sizes, removed, values)
