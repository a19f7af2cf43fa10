"""What a pruning achieved: one record per step, and the pruned network with its masks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.masks import Masks
from prunekit.recipe import Recipe
from prunekit.structure import ShrinkResult, shrink


@dataclass(frozen=True)
class Record:
    """What a step achieved.

    Attributes:
        step: its number, from 1.
        sparsity: the fraction of the prunable weights (or units) that is removed, as counted.
        kept: the prunable weights (or units) that are left, of `total`.
        layers: what is kept per parameter (or group of units).
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
        """Original over remaining prunable weights (or units)."""
        return self.total / self.kept if self.kept else float("inf")


@dataclass(frozen=True)
class Pruned:
    """A pruned network.

    Attributes:
        model: the model that was given, changed in place.
        masks: over its parameters, True = kept.
        history: what each step achieved.
        recipe: what was done.
        kept: what was chosen from, True = kept: the masks themselves, or by layer (units,) flags of units.
    """

    model: nn.Module
    masks: Masks
    history: tuple[Record, ...]
    recipe: Recipe
    kept: Masks

    def shrink(self, example_inputs: Tensor) -> ShrinkResult:
        """Take the removed units out of the model, in place, with the proof that it computes the same.

        Args:
            example_inputs: (N, ...) inputs to prove it on.

        Raises:
            InputError: if the recipe removed single weights, or a layer has lost all its units.
            VerificationError: if the smaller network computes something else; the model is untouched then.
        """
        if self.recipe.shape.counts != "units":
            raise InputError("single weights were removed, not units: there is nothing to take out whole")
        return shrink(self.model, self.kept, example_inputs)

    def __repr__(self) -> str:
        return f"<Pruned {type(self.model).__name__}: {self._achieved()}>"

    def _achieved(self) -> str:
        ratio = f"{self.kept.compression_ratio:.4g}x"
        return f"{self.kept.sparsity:.1%} of {self.kept.total:,} {self.recipe.shape.counts} removed ({ratio})"

    def __str__(self) -> str:
        if self.recipe.shape.counts == "units":
            return (
                f"{self._achieved()}. They are off, but still there: "
                "next, pruned.shrink(example_inputs) takes them out."
            )
        return (
            f"{self._achieved()}. Zeros alone make nothing smaller or faster: "
            "next, save_pretrained(pruned, folder) writes a file without them."
        )
