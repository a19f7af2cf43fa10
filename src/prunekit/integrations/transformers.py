"""Pruning in the `Trainer` of Hugging Face's transformers, with checkpoints from which it goes on exactly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from prunekit.errors import InputError
from prunekit.integrations.pruning_callback import PruningCallback
from prunekit.recipe import Recipe
from prunekit.saving import load_session, save_session

SESSION_FILE = "prunekit_session.safetensors"
"""What stands of the pruning in a checkpoint's folder."""


class TrainerPruning(PruningCallback, TrainerCallback):
    """A recipe whose steps are taken while a `Trainer` trains.

    Each checkpoint of the Trainer gets a file with the state of the pruning, from which
    `train(resume_from_checkpoint=...)` goes on, to the same weights bit for bit. Where no data is given, a
    recipe that needs some gets the batches of the Trainer.

    Args:
        recipe: what is done.
        every: a step of the recipe is taken after so many steps of the optimizer.
        resume_from: the checkpoint's folder, where it is not in the Trainer's own `output_dir`.
        settings: the other arguments of `PruningCallback`.
    """

    def __init__(
        self, recipe: Recipe, *, every: int, resume_from: str | Path | None = None, **settings: Any
    ) -> None:
        super().__init__(recipe, every=every, **settings)
        self._resume_from = resume_from

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let the masks act; after a checkpoint, those of the checkpoint.

        Raises:
            InputError: where a checkpoint has no state of the pruning, or that of another recipe or another
                `every`.
            DataError: where it is damaged.
        """
        model, optimizer = given["model"], given["optimizer"]
        by_example = self._recipe.by_example and self._example_inputs is None
        if self._data is None and (self._recipe.needs_data or by_example):
            self._data = given["train_dataloader"]
        file = None if not state.global_step else self._file(args, state)
        session = self._begin(model, optimizer)
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
        if state.is_world_process_zero and self.session is not None and folder.is_dir():
            save_session(self.session, folder / SESSION_FILE)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **given: Any
    ) -> None:
        """Add the sparsity to the Trainer's history, and to what callbacks behind this one log."""
        if isinstance(logs, dict) and self.session is not None:
            for each in (logs, *state.log_history[-1:]):
                each["sparsity"] = self.session.masks.sparsity

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let the masks act no more; the network stays pruned as it is.

        Where the Trainer has gone back to its best checkpoint, the pruning goes back with it.

        Raises:
            InputError, DataError: where that has no state of the pruning, or a damaged one.
        """
        if self.session is None:
            return
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            load_session(self.session, Path(state.best_model_checkpoint) / SESSION_FILE)
        self._end()


def _checkpoint(args: Any, state: Any) -> Path:
    """The folder that a Trainer writes its checkpoint of this step to."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


__all__ = ["SESSION_FILE", "TrainerPruning"]
