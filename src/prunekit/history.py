"""What a pruning achieved: one record per step, and the pruned network with its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from prunekit.masks import Masks
from prunekit.recipe import Recipe


@dataclass(frozen=True)
class Record:
    """What a step achieved.

    Attributes:
        step: its number, from 1.
        sparsity: the fraction of the prunable weights that is removed, as counted.
        kept: the prunable weights that are left, of `total`.
        layers: kept weights per parameter.
        train_loss: the mean loss of the last epoch of retraining; None without retraining.
        seconds: wall time of the step.
        measured: what `evaluate` returned.
    """

    step: int
    sparsity: float
    kept: int
    total: int
    layers: Mapping[str, int]
    train_loss: float | None
    seconds: float
    measured: Mapping[str, float] = field(default_factory=dict)

    @property
    def compression_ratio(self) -> float:
        """Original over remaining prunable weights."""
        return self.total / self.kept if self.kept else float("inf")


@dataclass(frozen=True)
class Pruned:
    """A pruned network: the model (the one that was given, changed in place), its masks and its history."""

    model: nn.Module
    masks: Masks
    history: tuple[Record, ...]
    recipe: Recipe

    def __str__(self) -> str:
        return (
            f"{self.masks.sparsity:.1%} of {self.masks.total:,} weights removed "
            f"({self.masks.compression_ratio:.4g}x). Zeros alone make nothing smaller or faster: "
            "next, save_pretrained(pruned, folder) writes a file without them."
        )
