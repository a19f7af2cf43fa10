"""Pruning in the `Trainer` of Hugging Face's transformers, with checkpoints from which it goes on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.history import Pruned
from prunekit.integrations.own_session import CallbackSession
from prunekit.pruning import Session
from prunekit.recipe import Recipe
from prunekit.saving import load_session, save_session
from prunekit.task import LossFunction, Task

SESSION_FILE = "prunekit_session.safetensors"
"""What stands of the pruning in a checkpoint's folder."""


class TrainerPruning(TrainerCallback):
    """A recipe whose steps are taken while a `Trainer` trains.

    Each checkpoint of the Trainer gets a file with the state of the pruning, from which
    `train(resume_from_checkpoint=...)` goes on, to the same weights bit for bit.

    Args:
        recipe: what is done; its own retraining settings do not act, since the Trainer is the training.
        every: a step of the recipe is taken after so many steps of the optimizer.
        data: calibration examples; by default the batches of the Trainer, for recipes that need data.
        loss: what is scored by; by default the loss that the model gives.
        task: in place of `loss`, how the network is fed a batch and what its loss is.
        seed: of everything random in the recipe.
        example_inputs: what the network can be run on, for recipes of units.
        resume_from: the checkpoint's folder, where it is not in the Trainer's own `output_dir`.

    Raises:
        InputError: for a recipe whose parts change the loss, which the Trainer computes by itself.
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
        resume_from: str | Path | None = None,
    ) -> None:
        self._own = CallbackSession(recipe, every, data, loss, task, seed, example_inputs)
        self._resume_from = resume_from

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

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let the masks act; after a checkpoint, those of the checkpoint.

        Raises:
            InputError: where a checkpoint has no state of the pruning, or that of another recipe.
            DataError: where it is damaged.
        """
        model, optimizer = given["model"], given["optimizer"]
        recipe = self._own.recipe
        by_example = recipe.by_example and self._own.example_inputs is None
        if self._own.data is None and (recipe.needs_data or by_example):
            self._own.data = given["train_dataloader"]
        file = None if not state.global_step else self._file(args, state)
        session = self._own.begin(model, optimizer)
        if file is not None:
            load_session(session, file)

    def _file(self, args: Any, state: Any) -> Path:
        named = self._resume_from or args.resume_from_checkpoint
        folder = named if isinstance(named, (str, Path)) else _checkpoint(args, state)
        file = Path(folder) / SESSION_FILE
        if not file.is_file():
            raise InputError(
                f"the training goes on at step {state.global_step}, but {file} is missing: name the "
                "checkpoint's folder in resume_from, or train from the beginning"
            )
        return file

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Write the state of the pruning into the checkpoint."""
        folder = _checkpoint(args, state)
        if state.is_world_process_zero and self._own.session is not None and folder.is_dir():
            save_session(self._own.session, folder / SESSION_FILE)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **given: Any
    ) -> None:
        """Add the sparsity to the Trainer's history, and to what callbacks behind this one log."""
        if isinstance(logs, dict) and self._own.session is not None:
            for each in (logs, *state.log_history[-1:]):
                each["sparsity"] = self._own.session.masks.sparsity

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let the masks act no more; the network stays pruned as it is.

        Where the Trainer has gone back to its best checkpoint, the pruning goes back with it.

        Raises:
            InputError, DataError: where that has no state of the pruning, or a damaged one.
        """
        if self._own.session is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            load_session(self._own.session, Path(state.best_model_checkpoint) / SESSION_FILE)
        self._own.session.detach()


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder that a Trainer writes its checkpoint of this step to."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


__all__ = ["SESSION_FILE", "TrainerPruning"]
