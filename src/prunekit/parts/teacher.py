"""Teachers: another network's outputs, which the survivors learn from while they are retrained."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.errors import InputError, ModelError
from prunekit.losses import NOTHING, class_axis
from prunekit.parts.base import BatchLoss, Part, Requirement
from prunekit.parts.context import StepContext
from prunekit.settings import LARGE
from prunekit.targets import device_of
from prunekit.task import PLAIN, Task
from prunekit.training import copy_state


@dataclass(frozen=True)
class SoftTargets:
    """Distillation by the softened outputs of a teacher, for the parts that have one.

    Attributes:
        who: the part, such as "teacher logits".
        temperature, share: as `Logits` describes them.
    """

    who: str
    temperature: float
    share: float

    @staticmethod
    def take(context: StepContext) -> None:
        """Make the network as the first step finds it the teacher, in the state."""
        if context.step.number == 1:
            for name, value in context.model.state_dict().items():
                context.state[name].copy_(value)

    def training_loss(self, context: StepContext, given: nn.Module | None = None) -> BatchLoss:
        """The loss with a teacher: that which is given, or the network with the values of the state."""
        try:
            teacher = copy.deepcopy(context.model if given is None else given)
        except Exception as error:  # copying runs the user's code
            raise ModelError(
                f"{self.who}: the model cannot be copied as a teacher: {type(error).__name__}: {error}"
            ) from error
        if given is None:
            teacher.load_state_dict(dict(context.state))
        teacher.to(device_of(context.model))
        teacher.requires_grad_(False).eval()
        return Distillation(teacher, self.temperature, self.share, self.who, context.task)

    def check_batch(self, outputs: Any, targets: Any, task: Task) -> None:
        """The outputs must be logits of classes."""
        task.tensor(outputs, self.who)
        loss = task.loss_name(targets)
        if loss not in ("cross_entropy", "CrossEntropyLoss"):
            raise InputError(
                f"{self.who}: softens the logits of classes, but the loss is {loss}: retrain without a "
                "teacher, such as by 'fine_tune'"
            )


@dataclass(frozen=True)
class Distillation:
    """The loss of a batch, mixed with the divergence from a teacher."""

    teacher: nn.Module
    temperature: float
    share: float
    who: str = "retrain distill"
    task: Task = PLAIN

    def __call__(self, batch: Batch, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        """(1 - share) loss + share T^2 divergence."""
        with torch.no_grad():
            wanted = self.task.tensor(self.task.run(self.teacher, batch), self.who)
        found = self.task.tensor(outputs, self.who)
        check_fit(wanted, found, self.who)
        axis = class_axis(found, targets)  # the last of (examples, positions, classes)
        student, teacher = found.movedim(axis, 1), wanted.movedim(axis, 1)
        if not targets.is_floating_point():
            counted = self.task.marked(targets) != NOTHING
            if not bool(counted.any()):
                return loss  # a mean of nothing, which the training tells
            student, teacher = student.movedim(1, -1)[counted], teacher.movedim(1, -1)[counted]
        apart = divergence(student, teacher, self.temperature)
        return (1 - self.share) * loss + self.share * self.temperature**2 * apart


def check_fit(wanted: Tensor, found: Tensor, who: str) -> None:
    """Refuse outputs of a teacher that are not of the shape of the network's.

    Raises:
        InputError: naming both shapes.
    """
    if wanted.shape != found.shape:
        raise InputError(
            f"{who}: the teacher's outputs are of the shape {tuple(wanted.shape)}, those of the network of "
            f"{tuple(found.shape)}: a teacher needs the same classes"
        )


def divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """KL(softmax(wanted / T) || softmax(outputs / T)) over classes, averaged over examples and positions.

    Args:
        outputs: (examples, classes, ...) logits.
        wanted: of the same shape, the teacher's.
        temperature: T.
    """
    student = F.log_softmax(outputs / temperature, dim=1)
    teacher = F.log_softmax(wanted / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(1).mean()


class Teacher(Part):
    """What the survivors learn from beside the task, in any retraining.

    Attributes:
        of: who the teacher is: the network as the first step finds it (`before`), which travels with the
            state of a session, as large as the network; or another one (`given`), `teacher` of `prune()`, of
            a session or of `Recipe.attach`. It is in evaluation mode, and never trained.
    """

    requires = (
        Requirement(
            "retrain",
            lambda retrain: retrain.plan is not None,
            "{part} acts on a retraining, and the retrain {value} is none: use 'fine_tune'",
        ),
        Requirement(
            "retrain",
            lambda retrain: retrain.name != "distill",
            "{part}: the retrain 'distill' has a teacher of its own: use 'fine_tune'",
        ),
    )

    of: Literal["before", "given"] = "before"

    def initial_state(self, model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
        """The teacher's parameters and buffers, if it is the network before pruning."""
        return copy_state(model) if self.of == "before" else {}

    def before_step(self, context: StepContext) -> None:
        """The teacher is what the first step finds."""
        if self.of == "before":
            SoftTargets.take(context)


class Logits(Teacher):
    """The softened outputs of a teacher.

    The loss is (1 - share) L + share T^2 KL(softmax(v / T) || softmax(z / T)), with L the loss of the
    retraining, the network's logits z and the teacher's v; the divergence is averaged over examples and
    positions whose targets are not ignored (-100).

    Attributes:
        temperature: T; the higher, the more the outputs of classes that are wrong count.
        share: of the teacher in the loss; 1 leaves the labels out.
    """

    name = "logits"
    paper = "Hinton, Vinyals, Dean 2015, arXiv 1503.02531"
    temperature: float = Field(default=2.0, gt=0, le=LARGE)
    share: float = Field(default=0.5, gt=0, le=1)

    @property
    def _targets(self) -> SoftTargets:
        return SoftTargets(f"teacher {self.name}", self.temperature, self.share)

    def training_loss(self, context: StepContext) -> BatchLoss:
        """The loss with the teacher."""
        return self._targets.training_loss(context, context.teacher)

    def check_batch(self, outputs: Any, targets: Any, task: Task) -> None:
        """The outputs must be logits of classes."""
        self._targets.check_batch(outputs, targets, task)
