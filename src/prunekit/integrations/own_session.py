"""What callbacks of all libraries share: a session that is begun, saved and gone on with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.history import Pruned
from prunekit.pruning import Session
from prunekit.recipe import Recipe
from prunekit.task import LossFunction, Task


@dataclass(eq=False)
class CallbackSession:
    """A session whose steps are taken by a loop that belongs to a library.

    Attributes:
        recipe: what is done; its own retraining settings do not act, since the loop is the training.
        every: a step of the recipe is taken after so many steps of the optimizer.
        data: calibration examples, if the recipe needs data.
        loss: what is scored by.
        task: in place of `loss`, how the network is fed a batch and what its loss is.
        seed: of everything random in the recipe.
        example_inputs: what the network can be run on, for recipes of units.
        session: once the training has begun.

    Raises:
        InputError: for a recipe whose parts change the loss, which a library's loop computes by itself.
    """

    recipe: Recipe
    every: int
    data: Any = None
    loss: str | LossFunction | None = None
    task: Task | None = None
    seed: int = 0
    example_inputs: Inputs | None = None
    session: Session | None = None

    def __post_init__(self) -> None:
        changing = [self.recipe.called(key) for key, _ in self.recipe.parts_with("training_loss")]
        if changing:
            raise InputError(
                f"the recipe's {changing[0]} changes the loss, which this loop computes by itself: attach "
                "the recipe in a loop of your own, and take the loss from session.training_loss"
            )

    def begin(self, model: nn.Module, optimizer: Optimizer | Sequence[Optimizer]) -> Session:
        """Let the masks act in a training that begins, or goes on: what is pruned of a network stays so."""
        if self.session is not None:
            self.session.detach()
            if self.session.model is model:
                self.session.attach(optimizer, every=self.every)
                return self.session
        self.session = self.recipe.attach(
            model,
            optimizer,
            data=self.data,
            loss=self.loss,
            task=self.task,
            seed=self.seed,
            every=self.every,
            example_inputs=self.example_inputs,
        )
        return self.session

    def result(self) -> Pruned:
        """The pruned network as it is now.

        Raises:
            InputError: before the training has begun.
        """
        if self.session is None:
            raise InputError("nothing is pruned yet: the training has not begun")
        return self.session.result()
