"""Scores that are accumulated while the network is trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.parts.context import StepContext
from prunekit.parts.retrain import TrainingSettings
from prunekit.parts.scores.base import Score, Scores
from prunekit.training import Training


class Movement(Score):
    """-sum of w dL/dw over the steps of the training: weights that training moves towards zero go first.

    The sum runs over every step of an optimizer: those of `training`, which comes before the first removal,
    and of all retrainings after it; in a loop of the user's over those of the loop. The gradients are those
    of the loss, without penalties and weight decay. The paper's learning rate of the scores is one factor of
    all of them, so it does not matter here. Removed weights are zero, so that their sums stand still; in the
    paper they are kept behind the mask and may come back.

    Attributes:
        training: before the first removal; it does not act in a loop of the user's.
    """

    name = "movement"
    paper = "Sanh, Wolf, Rush 2020, arXiv 2005.07683"
    training: TrainingSettings = Field(default_factory=Training)

    @property
    def warm_up(self) -> Training:  # type: ignore[override]
        """The training."""
        return self.training

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The sums so far, by parameter, in float32 or the weights' own higher precision."""
        weights = {name: model.get_parameter(name).detach() for name in names}
        return {
            name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in weights.items()
        }

    def before_optimizer_step(self, context: StepContext) -> None:
        """Add what this step has to say; frozen weights do not move."""
        for name, total in context.state.items():
            weight = context.model.get_parameter(name)
            if weight.grad is not None:
                total.addcmul_(weight.detach().to(total), weight.grad.to(total), value=-1)

    def __call__(self, context: StepContext) -> Scores:
        """The sums, on the weights' devices."""
        return {
            name: context.state[name].to(weight.device, copy=True) for name, weight in context.weights.items()
        }
