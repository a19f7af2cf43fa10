"""Retraining: from which values the survivors start after a step, and how they are trained."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.limits import WHOLE
from prunekit.parts.base import Part
from prunekit.seeds import derive, seeded
from prunekit.training import Training

TrainingSettings = Annotated[Training, BeforeValidator(Training.parse)]

Checkpoints = Mapping[int, Mapping[str, Tensor]]
"""States of the dense training by the number of optimizer steps that led to them; 0 = initial values."""


class Retrain(Part):
    """What follows a step of the pruning.

    Attributes:
        changes: whether the network is another one afterwards.
    """

    changes: ClassVar[bool] = True

    @property
    def plan(self) -> Training | None:
        """How the survivors are trained after a step; None for not at all."""
        return None

    @property
    def checkpoint(self) -> int | None:
        """The step of the dense training whose values are needed; None for none."""
        return None

    @property
    def start(self) -> int:
        """The number of the optimizer step from which retraining counts."""
        return 0

    @abstractmethod
    def restart(self, model: nn.Module, checkpoints: Checkpoints, seed: int) -> bool:
        """Set the values from which the survivors are retrained; True if they are not the trained ones.

        The network comes without wrappers; the masks are applied by the caller afterwards.
        """

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

    def restart(self, model: nn.Module, checkpoints: Checkpoints, seed: int) -> bool:
        """Leave the values."""
        return False


class FineTune(Retrain):
    """The survivors keep their trained values and are trained on."""

    name = "fine_tune"
    paper = "Han et al. 2015, arXiv 1506.02626"
    training: TrainingSettings = Field(default_factory=Training)

    @property
    def plan(self) -> Training:
        """The training."""
        return self.training

    def restart(self, model: nn.Module, checkpoints: Checkpoints, seed: int) -> bool:
        """Leave the values."""
        return False


class Rewind(Retrain):
    """All parameters go back to their values at a step of the dense training; 0 = the initial ones.

    Retraining runs from that step to the end of `training`, with its learning rates; the order of the data
    is another one in every round.
    """

    name = "rewind"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635; late rewinding: arXiv 1903.01611"
    step: int = Field(default=0, ge=0, le=WHOLE)
    training: TrainingSettings = Field(default_factory=Training)

    @property
    def plan(self) -> Training:
        """The training."""
        return self.training

    @property
    def checkpoint(self) -> int:
        """The step that is gone back to."""
        return self.step

    @property
    def start(self) -> int:
        """Training goes on from that step."""
        return self.step

    def restart(self, model: nn.Module, checkpoints: Checkpoints, seed: int) -> bool:
        """Load the values of that step."""
        model.load_state_dict(checkpoints[self.step])
        return True


class Reinitialize(Retrain):
    """The survivors get new random values from the model's own initial distribution: the control of `rewind`.

    The model, or each of its layers, must have `reset_parameters()`.
    """

    name = "reinitialize"
    paper = "Frankle, Carbin 2019, arXiv 1803.03635, section 2"
    training: TrainingSettings = Field(default_factory=Training)

    @property
    def plan(self) -> Training:
        """The training."""
        return self.training

    def check(self, model: nn.Module, checkpoints: Checkpoints) -> None:
        """Every module with parameters of its own must know how to reset them."""
        _resettable(model)

    def restart(self, model: nn.Module, checkpoints: Checkpoints, seed: int) -> bool:
        """Draw new values from the seed; torch's global generator is left as it was."""
        with seeded(derive(seed, "reinitialize")):
            for module in _resettable(model):
                module.reset_parameters()  # type: ignore[operator]
        return True


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
                f"retrain reinitialize: {name or 'the model'} ({type(module).__name__}) has no "
                "reset_parameters(), so its initial distribution is not known"
            )
    return found
