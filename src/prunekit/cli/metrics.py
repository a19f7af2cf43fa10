"""Metrics of a network: its quality on a dataset's test part, and its cost before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from torch import Tensor, nn

from prunekit.data import Dataset
from prunekit.graph import GraphModel
from prunekit.measure import count, evaluate, human_bytes, human_count, human_seconds, latency


def quality(model: nn.Module, data: Dataset | None) -> dict[str, float]:
    """Accuracy, top-5 accuracy where there are more than five classes, and loss; or the squared error.

    Empty without data, and for an exported graph, which takes batches of one size only.
    """
    if data is None or isinstance(model, GraphModel):
        return {}
    found = evaluate(model, data.test.inputs, data.test.targets, task=data.task)
    figures = (
        {"test_mse": found.mse}
        if data.task == "regression"
        else {"test_accuracy": found.accuracy, "test_top5": found.top5, "test_loss": found.loss}
    )
    return {name: value for name, value in figures.items() if value is not None}


_TURNS, _RUNS = 4, 15


@dataclass(frozen=True)
class Figures:
    """Of one network.

    Attributes:
        parameters: of the whole network.
        macs: multiply-accumulates per example.
        seconds: of a pass, the least median of some turns.
        bytes: of its folder.
        quality: on a dataset's test part, if there is one.
    """

    parameters: int
    macs: int
    seconds: float
    bytes: int = 0
    quality: Mapping[str, float] = field(default_factory=dict)

    def stored(self, size: int) -> Figures:
        """With the bytes on disk."""
        return replace(self, bytes=size)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "parameters": self.parameters,
            "macs": self.macs,
            "bytes": self.bytes,
            "latency": self.seconds,
            **self.quality,
        }


def figures(
    before: nn.Module, after: nn.Module, inputs: Tensor, data: Dataset | None
) -> tuple[Figures, Figures]:
    """Of two networks, timed in turns, so that a busy moment of the machine meets both; without bytes.

    Args:
        before: a network.
        after: another.
        inputs: (N, ...) of a pass.
        data: to test both on, if there is any.
    """
    both = (before, after)
    turns = [[latency(each, inputs, runs=_RUNS).median for each in both] for _ in range(_TURNS)]
    found = []
    for number, each in enumerate(both):
        counts = count(each, inputs)
        seconds = min(turn[number] for turn in turns)
        found.append(Figures(counts.parameters, counts.macs, seconds, quality=quality(each, data)))
    return found[0], found[1]


def figures_table(before: Figures, after: Figures) -> Table:
    """One line for each figure, with what is left of it."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("")
    for heading in ("before", "after", "left"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows: tuple[tuple[str, float, float, Callable[[float], str]], ...] = (
        ("parameters", before.parameters, after.parameters, lambda count: f"{count:,}"),
        ("MACs", before.macs, after.macs, human_count),
        ("bytes on disk", before.bytes, after.bytes, human_bytes),
        ("latency", before.seconds, after.seconds, human_seconds),
    )
    for name, first, second, written in rows:
        share = f"{100 * second / first:.1f}%" if first else "-"
        table.add_row(name, written(first), written(second), share)
    for name, value in before.quality.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}", f"{after.quality[name]:.4f}", "")
    return table


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
