"""Teachers: another network's outputs, which the survivors learn from while they are retrained."""

from __future__ import annotations

import copy
import weakref
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunekit.batches import Batch
from prunekit.errors import InputError, ModelError, explaining
from prunekit.losses import NOTHING, class_axis, one_tensor
from prunekit.modes import evaluating
from prunekit.parts.base import BatchLoss, Part, Requirement
from prunekit.parts.context import StepContext
from prunekit.settings import LARGE
from prunekit.targets import device_of, matches
from prunekit.task import PLAIN, Task
from prunekit.training import copy_state

__all__ = ["Distillation", "FeatureHints", "Hints", "Logits", "SoftTargets", "Teacher"]

CANNOT_RUN = "the teacher cannot be run on the data"


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
        teacher = copied_teacher(self.who, context, given)
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


def copied_teacher(who: str, context: StepContext, given: nn.Module | None) -> nn.Module:
    """A copy, in evaluation mode, of the network that is given, or of the one with the values of the state.

    Raises:
        ModelError: naming the part, if it cannot be copied.
    """
    try:
        teacher = copy.deepcopy(context.model if given is None else given)
    except Exception as error:  # copying runs the user's code
        raise ModelError(
            f"{who}: the model cannot be copied as a teacher: {type(error).__name__}: {error}"
        ) from error
    if given is None:
        teacher.load_state_dict(dict(context.state))
    teacher.to(device_of(context.model))
    return teacher.requires_grad_(False).eval()


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
            "trains_survivors",
            bool,
            "{part} acts on a retraining, and the retrain 'none' is none: use 'fine_tune'",
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

    @abstractmethod
    def check_teacher(self, model: nn.Module, teacher: nn.Module, batch: Batch, task: Task) -> None:
        """Run a teacher, which may be the network itself, on a batch, and refuse one that does not fit.

        Raises:
            ModelError: if the teacher cannot be run on it.
            InputError: naming what differs.
        """


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

    def check_teacher(self, model: nn.Module, teacher: nn.Module, batch: Batch, task: Task) -> None:
        """The outputs must be of one shape."""
        if teacher is model:
            return
        with torch.no_grad(), evaluating(model, teacher):
            with explaining(ModelError, lambda: CANNOT_RUN):
                wanted = task.run(teacher, batch)
            found = task.run(model, batch)
        check_fit(task.tensor(wanted, "teacher"), task.tensor(found, "teacher"), "teacher")

    @property
    def _targets(self) -> SoftTargets:
        return SoftTargets(f"teacher {self.name}", self.temperature, self.share)

    def training_loss(self, context: StepContext) -> BatchLoss:
        """The loss with the teacher."""
        return self._targets.training_loss(context, context.teacher)

    def check_batch(self, outputs: Any, targets: Any, task: Task) -> None:
        """The outputs must be logits of classes."""
        self._targets.check_batch(outputs, targets, task)


class FeatureHints(Teacher):
    """What layers inside a teacher give, as hints.

    The loss is L + strength * the mean over the layers of ||a - b||^2 / ||b||^2, with L the loss of the
    retraining, the outputs a of a layer of the network on a batch, and b those of the teacher's layer of the
    same name, or of the one that is named for it.

    Attributes:
        layers: names of modules, globs or `re:` patterns; a mapping from the network's to the teacher's where
            they differ.
        strength: of the hints in the loss.
    """

    name = "features"
    paper = "Romero et al. 2015 (FitNets), arXiv 1412.6550"
    layers: tuple[str, ...] | dict[str, str] = Field(min_length=1)
    strength: float = Field(default=1.0, gt=0, le=LARGE)

    def training_loss(self, context: StepContext) -> BatchLoss:
        """The loss with the hints."""
        teacher = copied_teacher(self._who, context, context.teacher)
        return self._hints(context.model, teacher, context.task)

    def check_teacher(self, model: nn.Module, teacher: nn.Module, batch: Batch, task: Task) -> None:
        """Both must have the layers, whose outputs must be of one shape."""
        hints = self._hints(model, teacher, task)
        with torch.no_grad(), evaluating(model, teacher):
            task.run(model, batch)
            hints.apart(batch)

    @property
    def _who(self) -> str:
        return f"teacher {self.name}"

    def _hints(self, model: nn.Module, teacher: nn.Module, task: Task) -> Hints:
        return Hints(model, teacher, self._pairs(model), self.strength, task, self._who)

    def _pairs(self, model: nn.Module) -> dict[str, str]:
        """From the network's layers to the teacher's."""
        if isinstance(self.layers, dict):
            return self.layers
        known = [name for name, _ in model.named_modules() if name]
        found: dict[str, str] = {}
        for pattern in self.layers:
            fitting = [name for name in known if matches(pattern, name)]
            if not fitting:
                raise InputError(
                    f"{self._who}: layers: {pattern!r} matches no module; modules are: {', '.join(known)}"
                )
            found.update(zip(fitting, fitting, strict=True))
        return found


class Hints:
    """The loss of a batch, with how far what layers give is from what those of a teacher give.

    While this object lives it watches the network's layers, but not those of copies. Where the outputs are
    not those of the network's last run, as where two batches are run before this is asked, the batch is run
    again.

    Args:
        model: the network, which runs on a batch before this is asked about the batch.
        teacher: in evaluation mode.
        pairs: from names of the network's modules to names of the teacher's.
        strength: of the hints.
        task: runs the teacher.
        who: the part, for errors.

    Raises:
        InputError: if one of them has no module of such a name.
    """

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        pairs: Mapping[str, str],
        strength: float,
        task: Task,
        who: str,
    ) -> None:
        self._model, self._teacher, self._pairs = model, teacher, pairs
        self._strength, self._task, self._who = strength, task, who
        self._last: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}
        self._wanted: dict[str, Any] = {}
        watched = [
            (model, self._last, ""),
            *((self._module(model, name, "network"), self._seen, name) for name in pairs),
            *((self._module(teacher, name, "teacher"), self._wanted, name) for name in pairs.values()),
        ]
        for module, seen, name in watched:
            weakref.finalize(self, _watch(module, seen, name).remove)

    def __call__(self, batch: Batch, outputs: Any, targets: Any, loss: Tensor) -> Tensor:
        """loss + strength * how far they are apart."""
        if self._last.pop("", None) is not outputs:
            self._task.run(self._model, batch)
        return loss + self._strength * self.apart(batch)

    def apart(self, batch: Batch) -> Tensor:
        """The mean over the layers of ||a - b||^2 / ||b||^2."""
        with torch.no_grad(), explaining(ModelError, lambda: CANNOT_RUN):
            self._task.run(self._teacher, batch)
        found = []
        for name, other in self._pairs.items():
            a, b = self._one(self._seen, name, "network"), self._one(self._wanted, other, "teacher")
            if a.shape != b.shape:
                raise InputError(
                    f"{self._who}: {name!r} gives {tuple(a.shape)}, and {other!r} of the teacher "
                    f"{tuple(b.shape)}: name layers of one shape"
                )
            tiny = torch.finfo(b.dtype).tiny
            found.append((a - b).square().sum() / b.square().sum().clamp_min(tiny))
        return torch.stack(found).mean()

    def _module(self, model: nn.Module, name: str, which: str) -> nn.Module:
        modules = dict(model.named_modules())
        if name not in modules:
            raise InputError(
                f"{self._who}: layers: the {which} has no module {name!r}; modules are: "
                f"{', '.join(filter(None, modules))}"
            )
        return modules[name]

    def _one(self, seen: dict[str, Any], name: str, which: str) -> Tensor:
        if name not in seen:
            raise InputError(f"{self._who}: layers: {name!r} of the {which} never ran on a batch")
        return one_tensor(seen.pop(name), f"{self._who}: {name!r}")


def _watch(module: nn.Module, seen: dict[str, Any], name: str) -> RemovableHandle:
    """Keep what a module gives from now on, but not what its copies give, which have the same hooks."""
    own = weakref.ref(module)

    def keep(module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module is own():
            seen[name] = outputs

    return module.register_forward_hook(keep)
