"""Retraining: from which values the survivors start after a step, and how they are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from prunekit.errors import InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.base import BatchLoss, Part
from prunekit.parts.context import StepContext
from prunekit.parts.teacher import SoftTargets
from prunekit.seeds import derive, seeded
from prunekit.settings import LARGE, WHOLE
from prunekit.targets import owner_of
from prunekit.task import Task
from prunekit.training import Training, TrainingPart, copy_state, initial_optimizer_state

__all__ = [
    "Continued",
    "Distill",
    "FineTune",
    "NoRetraining",
    "RedrawTicket",
    "Reinitialize",
    "Retrain",
    "Rewind",
    "TrainedOn",
]

TrainingSettings = Annotated[Training, BeforeValidator(Training.parse)]

Checkpoints = Mapping[int, Mapping[str, Tensor]]
"""States of the dense training by the number of optimizer steps that led to them; 0 = initial values."""


class Retrain(Part):
    """What follows a step of the pruning.

    Attributes:
        changes: whether the network is another one afterwards.
        plan: how the survivors are trained after a step; None for not at all.
        checkpoint: the step of the dense training whose values are needed; None for none.
        start: the number of the optimizer step from which retraining counts.
        continues: whether the trainings after all steps are parts of one; the state of the part is then that
            of the optimizer.
    """

    changes: ClassVar[bool] = True
    plan: ClassVar[Training | None] = None
    checkpoint: ClassVar[int | None] = None
    start: ClassVar[int] = 0
    continues: ClassVar[bool] = False

    @model_validator(mode="after")
    def _training_is_used(self) -> Self:
        if "training" in type(self).model_fields and self.plan is None:
            raise ValueError(
                "it has the setting 'training', but no `plan` that uses it: derive it from "
                "prunekit.parts.retrain.TrainedOn"
            )
        return self

    def restart(self, context: StepContext, checkpoints: Checkpoints, seed: int) -> bool:
        """Set the values from which the survivors are retrained; True if they are not the trained ones.

        By default the trained values are left. The masks are applied by the caller afterwards.

        Args:
            context: of the step, with the network.
            checkpoints: states of the dense training.
            seed: of what is random at this step.
        """
        return False

    def part(self, number: int, parts: int, state: Mapping[str, Tensor]) -> TrainingPart:
        """One of the parts of a training that continues, as `TrainingPart` describes it."""
        return TrainingPart(number, parts, state)

    def check(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """Refuse, before anything is changed, what cannot be restarted."""
        if self.checkpoint is not None and self.checkpoint not in checkpoints:
            have = ", ".join(str(step) for step in sorted(checkpoints)) or "none"
            raise InputError(
                f"retrain {self.name}: needs the values at step {self.checkpoint} of the training; "
                f"give prune() checkpoints={{{self.checkpoint}: state_dict}} (given: {have})"
            )


class NoRetraining(Retrain):
    """Nothing follows."""

    name = "none"
    changes = False


class TrainedOn(Retrain):
    """Survivors trained on, as the setting `training` says: the base of retrainings that train."""

    training: TrainingSettings = Field(default_factory=Training)

    @property
    def plan(self) -> Training:  # type: ignore[override]
        """The training."""
        return self.training


class FineTune(TrainedOn):
    """The survivors keep their trained values and are trained on."""

    name = "fine_tune"
    paper = "Han et al. 2015, arXiv 1506.02626"


class Continued(TrainedOn):
    """The survivors are trained on in one training that the steps of the pruning interrupt.

    Its length is that of `training` after each step, all together; one optimizer serves all of it, its
    learning rate falls over all of it, and the order of the data goes on. With `fine_tune` each step is
    followed by a training of its own, with a new optimizer, whose first steps are full ones.

    Attributes:
        rest: the share of the whole training that is added after its last part, so that it is longer: 0.25
            where the last step's part ends at 75 % of the training.
    """

    name = "continued"
    paper = "Zhu, Gupta 2017, arXiv 1710.01878"
    continues = True
    rest: float = Field(default=0.0, ge=0, lt=1)

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The optimizer's, before its first step."""
        return initial_optimizer_state(model, self.training)

    def part(self, number: int, parts: int, state: Mapping[str, Tensor]) -> TrainingPart:
        """The last one is longer by the rest."""
        return TrainingPart(number, parts, state, self.rest)


class Distill(TrainedOn):
    """The survivors are trained on the task and on the softened outputs of the network before pruning.

    It is `fine_tune` with the teacher `logits`, which other retrainings take as well.

    The loss is (1 - share) L + share T^2 KL(softmax(v / T) || softmax(z / T)), with L the loss of `training`,
    the network's logits z and the teacher's v, and classes along dimension 1; the divergence is averaged over
    examples and positions whose targets are not ignored (-100). The teacher is the network as the first step
    finds it, in evaluation mode, and is never trained; it travels with the state of a session, as large as
    the network.

    Attributes:
        temperature: T; the higher, the more the outputs of classes that are wrong count.
        share: of the teacher in the loss; 1 leaves the labels out.
    """

    name = "distill"
    paper = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531"
    temperature: float = Field(default=2.0, gt=0, le=LARGE)
    share: float = Field(default=0.5, gt=0, le=1)

    @property
    def _targets(self) -> SoftTargets:
        return SoftTargets(f"retrain {self.name}", self.temperature, self.share)

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The teacher's parameters and buffers."""
        return copy_state(model)

    def before_step(self, context: StepContext) -> None:
        """The teacher is what the first step finds."""
        self._targets.take(context)

    def training_loss(self, context: StepContext) -> BatchLoss:
        """The loss with a teacher."""
        return self._targets.training_loss(context)

    def check_batch(self, outputs: Any, targets: Any, task: Task) -> None:
        """The outputs must be logits of classes."""
        self._targets.check_batch(outputs, targets, task)


class Rewind(TrainedOn):
    """All parameters go back to their values at a step of the dense training; 0 = the initial ones.

    Retraining runs from that step to the end of `training`, with its learning rates; the order of the data
    is another one in every round.
    """

    name = "rewind"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635; late rewinding: arXiv 1903.01611"
    step: int = Field(default=0, ge=0, le=WHOLE)

    @property
    def checkpoint(self) -> int:  # type: ignore[override]
        """The step that is gone back to."""
        return self.step

    @property
    def start(self) -> int:  # type: ignore[override]
        """Training goes on from that step."""
        return self.step

    def restart(self, context: StepContext, checkpoints: Checkpoints, seed: int) -> bool:
        """Load the values of that step."""
        context.model.load_state_dict(checkpoints[self.step])
        return True


class Reinitialize(TrainedOn):
    """The survivors get new random values from the model's own initial distribution, after every step.

    The next step ranks the values that were trained from these, so its mask is another one than that of
    `rewind`, whose published control is `redraw_ticket`.

    The model, or each of its layers, must have `reset_parameters()`.

    Attributes:
        fan_in: of which layer the values are: of the `original` one, or of one that was built with as many
            inputs as are `kept`. Then those of linear layers and convolutions are scaled by the root of
            original / kept inputs of an output, as PyTorch's own initial values and He's are.
    """

    name = "reinitialize"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635, section 2"
    fan_in: Literal["original", "kept"] = "original"

    def check(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """Every module with parameters of its own must know how to reset them."""
        _resettable(model)

    def restart(self, context: StepContext, checkpoints: Checkpoints, seed: int) -> bool:
        """Draw new values from the seed; torch's global generator is left as it was."""
        redraw(context.model, derive(seed, "reinitialize"))
        if self.fan_in == "kept":
            _scale_to_kept(context.model, context.masks)
        return True


class RedrawTicket(TrainedOn):
    """The initial values in every round but the last, after which the survivors get new random values.

    The control of the lottery ticket as published: all masks are those of `rewind` to the initial values, to
    the bit, and the network that is left differs from the ticket in nothing but its values. A ticket of fewer
    rounds is a pruning of its own.

    Attributes:
        draw: the number of the draw; the paper takes three.
    """

    name = "redraw_ticket"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635, section 2"
    checkpoint = 0
    draw: int = Field(default=0, ge=0, le=WHOLE)

    def check(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """The initial values must be there, and a way to draw new ones."""
        super().check(model, checkpoints)
        _resettable(model)

    def restart(self, context: StepContext, checkpoints: Checkpoints, seed: int) -> bool:
        """Load the initial values, or draw new ones after the last round."""
        if context.step.round < context.step.rounds:
            context.model.load_state_dict(checkpoints[0])
        else:
            redraw(context.model, derive(seed, "redraw", self.draw))
        return True


def redraw(model: nn.Module, seed: int) -> None:
    """Draw all values of a network anew; torch's global generator is left as it was.

    Raises:
        ModelError: naming a module that has parameters and no `reset_parameters()`.
    """
    with seeded(seed):
        for module in _resettable(model):
            module.reset_parameters()  # type: ignore[operator]


@torch.no_grad()
def _scale_to_kept(model: nn.Module, masks: Masks) -> None:
    """Scale the values of each layer as if it had only the inputs that are kept."""
    for name, mask in masks.items():
        layer = owner_of(model, name)
        if name.endswith(".weight") and isinstance(layer, nn.Linear | _ConvNd) and bool(mask.any()):
            inputs = mask.flatten(1)
            factor = math.sqrt(inputs.shape[1] / int(inputs.sum(1).max()))
            layer.weight.mul_(factor)
            if layer.bias is not None:
                layer.bias.mul_(factor)


def _resettable(model: nn.Module) -> list[nn.Module]:
    if hasattr(model, "reset_parameters"):
        return [model]
    found = []
    for name, module in model.named_modules():
        parameters = any(True for _ in module.parameters(recurse=False))
        if hasattr(module, "reset_parameters"):
            # running statistics are reset with the parameters, or without any; a container resets nothing
            if parameters or any(True for _ in module.buffers(recurse=False)):
                found.append(module)
        elif parameters:
            raise ModelError(
                f"new random values: {name or 'the model'} ({type(module).__name__}) has no "
                "reset_parameters(), so its initial distribution is not known"
            )
    return found
