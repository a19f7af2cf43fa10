"""Stopping: when a pruning ends before its schedule does, because the network has become too bad."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from prunekit.errors import InputError
from prunekit.losses import right_classes
from prunekit.masks import Masks
from prunekit.parts.base import Part
from prunekit.task import PLAIN, Task

__all__ = ["ErrorLimit", "NoStop", "Stop", "Stopped"]


class Stop(Part):
    """What ends a pruning before its last step.

    Attributes:
        needs_data: whether the network is measured after each step, so that data is needed.
        rolls_back: whether the network goes back to before the step that broke the rule.
    """

    needs_data: ClassVar[bool] = True
    rolls_back: ClassVar[bool] = False

    @abstractmethod
    def error(self, outputs: Any, targets: Any, task: Task) -> Tensor:
        """What is measured of a batch: a scalar, the mean over its terms; lower is better."""

    def terms(self, outputs: Any, targets: Any, task: Task) -> float:
        """How many terms that is the mean of; by default those of the task's loss."""
        return task.terms(outputs, targets)

    @abstractmethod
    def allowed(self, before: float) -> float:
        """The greatest error that is allowed, from that of the network before the first step.

        Raises:
            InputError: if that network is over it already.
        """


class NoStop(Stop):
    """All steps of the schedule are taken."""

    name = "none"
    needs_data = False

    def error(self, outputs: Any, targets: Any, task: Task) -> Tensor:
        """Nothing."""
        return torch.zeros(())

    def allowed(self, before: float) -> float:
        """Anything."""
        return float("inf")


class ErrorLimit(Stop):
    """Stop once the error, after a step and its retraining, passes a limit.

    It is measured on the validation data that is given to `prune` (a study gives its validation split), else
    on the recipe's calibration sample of the training data, always the same examples. An error that is no
    number is over every limit. Where the running statistics of norms are taken anew after every step, and no
    training changes them after that, the error before the first step is the one with new statistics, too.

    Attributes:
        of: what is measured: the loss, or the fraction of examples that are classified wrongly.
        limit: the greatest error allowed; give this or `increase`.
        increase: how much greater than before the first step it may be.
        roll_back: go back to the weights and masks before the step that broke the limit, as N2PS does;
            otherwise that step stays, and is the last.
    """

    name = "error_limit"
    paper = "Mozer, Smolensky 1989, NIPS 1; Augasta, Kathirvalavakumar 2011 (roll-back)"
    of: Literal["loss", "error_rate"] = "loss"
    limit: float | None = Field(default=None, ge=0)
    increase: float | None = Field(default=None, ge=0)
    roll_back: bool = True

    @model_validator(mode="after")
    def _one_of_two(self) -> ErrorLimit:
        if (self.limit is None) == (self.increase is None):
            raise ValueError("give either 'limit' (of the error) or 'increase' (over that before pruning)")
        return self

    @property
    def rolls_back(self) -> bool:  # type: ignore[override]
        """As set."""
        return self.roll_back

    def error(self, outputs: Any, targets: Any, task: Task) -> Tensor:
        """The loss, or the fraction of wrong classes among those that are not ignored.

        Raises:
            InputError: for a rate of real values, which are neither right nor wrong.
        """
        if self.of == "loss":
            return task.loss(outputs, targets)
        logits = task.tensor(outputs, "stop error_limit")
        if not isinstance(targets, Tensor):
            raise InputError("stop error_limit: an error_rate needs class numbers as targets: use 'of: loss'")
        if targets.is_floating_point() or logits.dim() != targets.dim() + 1:
            raise InputError(
                "stop error_limit: an error_rate needs class numbers as targets, got "
                f"{targets.dtype} of the shape {tuple(targets.shape)}: use 'of: loss'"
            )
        return 1 - right_classes(logits, task.marked(targets)).double().mean()

    def terms(self, outputs: Any, targets: Any, task: Task) -> float:
        """Of the loss, or the classes that are not ignored, each once."""
        return (
            task.terms(outputs, targets) if self.of == "loss" else PLAIN.terms(outputs, task.marked(targets))
        )

    def allowed(self, before: float) -> float:
        """The limit, or the error before pruning and the increase."""
        if self.limit is None:
            assert self.increase is not None
            return before + self.increase
        if not before <= self.limit:
            raise InputError(
                f"stop error_limit: the network has {_words(self.of)} of {before:.4g} before pruning, over "
                f"the limit of {self.limit:g} already: raise 'limit', or give 'increase'"
            )
        return self.limit


def _words(of: str) -> str:
    return "a loss" if of == "loss" else "an error rate"


@dataclass(frozen=True)
class Stopped:
    """Why a pruning ended before its last step.

    Attributes:
        step: the number of the step that broke the rule.
        error: what was measured after it, and `allowed` what it should not pass.
        rolled_back: whether the network is what it was before that step (before all steps since the last one
            that was measured, where retraining follows only some).
    """

    step: int
    error: float
    allowed: float
    rolled_back: bool

    def __str__(self) -> str:
        end = "rolled back to before it" if self.rolled_back else "it was the last"
        return f"stopped at step {self.step}: error {self.error:.4g}, allowed {self.allowed:.4g}; {end}"


@dataclass(frozen=True)
class Held:
    """The last network known to be within the limit.

    Attributes:
        steps: how many steps it has behind it.
        kept: what was chosen from, True = kept.
        state: its state dict; None if there is no going back.
    """

    steps: int
    kept: Masks
    state: Mapping[str, Tensor] | None
