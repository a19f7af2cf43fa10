"""Pruning in the `Trainer` of Lightning, with checkpoints from which it goes on exactly."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.history import Pruned
from prunekit.integrations.own_session import CallbackSession
from prunekit.pruning import Session
from prunekit.recipe import Recipe
from prunekit.task import LossFunction, Task


class LightningPruning(Callback):
    """A recipe whose steps are taken while Lightning trains a module.

    Lightning's checkpoints hold the state of the pruning; `fit(ckpt_path=...)` goes on from it.

    Args:
        recipe: what is done; its own retraining settings do not act, since Lightning is the training.
        every: a step of the recipe is taken after so many steps of the optimizer.
        data: calibration examples, if the recipe needs data.
        loss: what is scored by.
        task: in place of `loss`, how the network is fed a batch and what its loss is.
        seed: of everything random in the recipe.
        example_inputs: what the network can be run on, for recipes of units.

    Raises:
        InputError: for a recipe whose parts change the loss, which the module computes by itself.
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
        example_inputs: Inputs | None = None,
    ) -> None:
        self._own = CallbackSession(recipe, every, data, loss, task, seed, example_inputs)
        self._state: dict[str, Any] | None = None

    @property
    def session(self) -> Session | None:
        """The pruning under way, once the training has begun."""
        return self._own.session

    def result(self) -> Pruned:
        """The pruned network as it is now.

        Raises:
            InputError: before the training has begun.
        """
        return self._own.result()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the masks act; after a checkpoint, those of the checkpoint.

        Raises:
            InputError: where the checkpoint holds no state of the pruning, that of another recipe, or a
                damaged one.
        """
        if trainer.global_step and self._state is None and self._own.session is None:
            raise InputError(
                f"the training goes on at step {trainer.global_step}, but its checkpoint has no state of the "
                "pruning: train from the beginning"
            )
        session = self._own.begin(pl_module, trainer.optimizers)
        if self._state is not None:
            session.load_state_dict(self._state)
            self._state = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the masks act no more; the network stays pruned as it is."""
        if self._own.session is not None:
            self._own.session.detach()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into its checkpoint."""
        return {} if self._own.session is None else self._own.session.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training begins."""
        self._state = state_dict or None
