"""Pruning in the `Trainer` of Lightning, with checkpoints from which it goes on exactly."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from prunekit.errors import InputError
from prunekit.integrations.pruning_callback import PruningCallback

__all__ = ["LightningPruning"]


class LightningPruning(PruningCallback, Callback):
    """A recipe whose steps are taken while Lightning trains a module; its arguments are the base's.

    Lightning's checkpoints hold the state of the pruning; `fit(ckpt_path=...)` goes on from it. Several may
    prune one module, each its own targets.
    """

    _state: dict[str, Any] | None = None
    _instead = ""

    @property
    def state_key(self) -> str:
        """Under which a checkpoint holds the state: with the targets, as several have no weight in common."""
        return self._generate_state_key(targets=self._recipe.targets, ignore=self._recipe.ignore)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the masks act; after a checkpoint, those of the checkpoint.

        Raises:
            InputError: where the checkpoint holds no state of the pruning, that of another recipe or another
                `every`, or a damaged one.
        """
        if trainer.global_step and self._state is None and self.session is None:
            raise InputError(
                f"the training goes on at step {trainer.global_step}, but its checkpoint has no state of the "
                f"pruning as {self.state_key}{self._instead}: train from the beginning"
            )
        session = self._begin(pl_module, trainer.optimizers)
        if self._state is not None:
            session.load_state_dict(self._state)
            self._state = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the masks act no more; the network stays pruned as it is."""
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """What Lightning puts into its checkpoint."""
        return {} if self.session is None else self.session.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See which prunings a checkpoint holds, for the error where this one is not among them."""
        found = [key for key in checkpoint["callbacks"] if str(key).startswith(type(self).__qualname__)]
        self._instead = f", only as {', '.join(found)}" if found else ""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what a checkpoint holds until the training begins."""
        self._state = state_dict or None
