"""What callbacks of all libraries share: a session that is begun, gone on with and ended by their loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.history import Pruned
from prunekit.loggers import Logger, Loggers
from prunekit.pruning import Session
from prunekit.recipe import Recipe
from prunekit.task import LossFunction, Task

__all__ = ["PruningCallback"]


class PruningCallback:
    """A recipe whose steps are taken in a training loop that belongs to a library.

    Args:
        recipe: what is done; its own retraining settings do not act, since the loop is the training.
        every: a step of the recipe is taken after so many steps of the optimizer.
        data: calibration examples, if the recipe needs data.
        loss: what is scored by.
        task: in place of `loss`, how the network is fed a batch and what its loss is.
        seed: of everything random in the recipe.
        loggers: told what each step achieved; see `prunekit.loggers`.
        example_inputs: what the network can be run on, for recipes of units.

    Attributes:
        session: the pruning under way, once the training has begun.

    Raises:
        InputError: for a recipe whose parts change the loss, which the library's loop computes by itself.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        every: int,
        data: Any = None,
        loss: str | LossFunction | None = None,
        task: Task | None = None,
        seed: int = 0,
        loggers: Iterable[Logger] = (),
        example_inputs: Inputs | None = None,
    ) -> None:
        changing = [recipe.called(key) for key, _ in recipe.parts_with("training_loss")]
        if changing:
            raise InputError(
                f"the recipe's {changing[0]} changes the loss, which this loop computes by itself: attach "
                "the recipe in a loop of your own, and take the loss from session.training_loss"
            )
        self.session: Session | None = None
        self._recipe, self._every, self._data, self._seed = recipe, every, data, seed
        self._loss, self._task, self._example_inputs = loss, task, example_inputs
        self._loggers = Loggers(loggers)

    def result(self) -> Pruned:
        """The pruned network as it is now.

        Raises:
            InputError: before the training has begun.
        """
        if self.session is None:
            raise InputError("nothing is pruned yet: the training has not begun")
        return self.session.result()

    def _begin(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> Session:
        """Let the masks act in a training that begins, or goes on: what is pruned of a network stays so."""
        self._end()
        if self.session is not None and self.session.model is model:
            self.session.attach(optimizer, every=self._every)
            return self.session
        self.session = self._recipe.attach(
            model,
            optimizer,
            data=self._data,
            loss=self._loss,
            task=self._task,
            seed=self._seed,
            every=self._every,
            loggers=(self._loggers,),
            example_inputs=self._example_inputs,
        )
        return self.session

    def _end(self) -> None:
        """Let the masks act no more; the network stays pruned as it is."""
        if self.session is not None:
            self.session.detach()
