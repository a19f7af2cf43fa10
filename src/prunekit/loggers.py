"""Where the course of a pruning is written: a bar on the terminal, TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from prunekit.distributed import rank
from prunekit.errors import InputError, instead, shown
from prunekit.extras import check_installed, imported
from prunekit.history import Record
from prunekit.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Logger",
    "Loggers",
    "MLflowLogger",
    "ProgressBar",
    "TensorBoardLogger",
    "WandbLogger",
    "logger_named",
    "metrics_of",
]


@runtime_checkable
class Logger(Protocol):
    """Something that is told how a pruning goes. A subclass overrides what it wants to be told."""

    def start(self, recipe: Recipe, steps: int) -> None:
        """A pruning begins, or goes on.

        Args:
            recipe: its settings, which are the configuration of the run.
            steps: how many it has in all.
        """
        return

    def measuring(self, done: int, total: int) -> None:
        """What is measured of units at a step is at this of so many units times examples."""
        return

    def progress(self, done: int, total: int) -> None:
        """The trainings of a step, counted as one, are at this of so many steps of their optimizer."""
        return

    def log(self, record: Record) -> None:
        """A step of the pruning is done."""
        return


class Loggers(Logger):
    """The loggers of a session, as one. Of several processes the first alone tells them.

    A copy of a session has the same loggers, a pickled one has none: they hold files and connections.

    Raises:
        InputError: for something that is no sequence of loggers.
    """

    def __init__(self, loggers: Iterable[Logger] = ()) -> None:
        if not isinstance(loggers, Iterable):
            raise InputError(f"loggers: a sequence of them is needed, such as [logger], not {shown(loggers)}")
        self._loggers = tuple(loggers)
        for each in self._loggers:
            if isinstance(each, type) or not isinstance(each, Logger):
                raise InputError(
                    f"loggers: {shown(each)} is no logger: it needs start, measuring, progress and log"
                )

    def __bool__(self) -> bool:
        return bool(self._loggers)

    def start(self, recipe: Recipe, steps: int) -> None:
        """Tell all."""
        for each in self._told():
            each.start(recipe, steps)

    def measuring(self, done: int, total: int) -> None:
        """Tell all."""
        for each in self._told():
            each.measuring(done, total)

    def progress(self, done: int, total: int) -> None:
        """Tell all."""
        for each in self._told():
            each.progress(done, total)

    def log(self, record: Record) -> None:
        """Tell all."""
        for each in self._told():
            each.log(record)

    def _told(self) -> tuple[Logger, ...]:
        return self._loggers if rank() == 0 else ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Loggers:
        return self

    def __reduce__(self) -> tuple[type[Loggers], tuple[()]]:
        return Loggers, ()


def metrics_of(record: Record) -> dict[str, float]:
    """The numbers of a step by the names that loggers give them.

    `pruning/` stands before `sparsity`, `kept`, `compression_ratio`, `seconds`, and `train_loss`, `bits`,
    `asked` and `reached` where there are any; `measured/` before what `evaluate` returned.
    """
    own = {
        "sparsity": record.sparsity,
        "kept": record.kept,
        "compression_ratio": record.compression_ratio,
        "seconds": record.seconds,
        "train_loss": record.train_loss,
        "bits": record.bits,
        "asked": record.asked,
        "reached": record.reached,
    }
    named = {f"pruning/{name}": value for name, value in own.items() if value is not None}
    return named | {f"measured/{name}": value for name, value in record.measured.items()}


class ProgressBar(Logger):
    """A bar on the terminal for the steps of a pruning and their trainings; without a terminal, nothing.

    It is there inside a `with` block. `progress` is also a `report` for `prunekit.train`.

    Args:
        console: whose terminal it is; by default that of stderr.
        description: what is said beside the bar until a pruning begins.
    """

    def __init__(self, console: Console | None = None, description: str = "training") -> None:
        from rich.console import Console  # here, for rich takes 25 ms, and few prunings show a bar
        from rich.progress import Progress

        console = console or Console(stderr=True)
        self._bars = Progress(console=console, transient=True, disable=not console.is_terminal)
        self._bar = self._bars.add_task(description, total=None)
        self._steps, self._done = 1, 0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def start(self, recipe: Recipe, steps: int) -> None:
        """Show that nothing is pruned yet."""
        self._steps, self._done = steps, 0
        self._bars.update(self._bar, description="pruning", completed=0, total=steps)

    def measuring(self, done: int, total: int) -> None:
        """Show how far the units of the step are measured."""
        described = f"step {self._done + 1} of {self._steps}, measuring units"
        self._bars.update(self._bar, description=described, completed=done, total=total)

    def progress(self, done: int, total: int) -> None:
        """Show how far the step is."""
        self._bars.update(self._bar, completed=self._done + done / max(total, 1), total=self._steps)

    def log(self, record: Record) -> None:
        """Show what is removed."""
        self._done = record.step
        described = f"step {record.step} of {self._steps}, {record.sparsity:.1%} removed"
        self._bars.update(self._bar, description=described, completed=record.step, total=self._steps)


class TensorBoardLogger(Logger):
    """Curves over the steps of a pruning, and its recipe as a text, in event files of TensorBoard.

    Args:
        to: the folder of the run, or a `torch.utils.tensorboard.SummaryWriter` of your own.

    Raises:
        InputError: where tensorboard is not installed.
    """

    def __init__(self, to: Any) -> None:
        if isinstance(to, (str, Path)):
            check_installed("TensorBoardLogger", "tensorboard")
            from torch.utils.tensorboard import SummaryWriter  # only now: it needs tensorboard

            to = SummaryWriter(str(to))
        self.writer = to

    def start(self, recipe: Recipe, steps: int) -> None:
        """Write the recipe."""
        self.writer.add_text("recipe", f"```yaml\n{recipe.to_yaml()}```")
        self.writer.flush()

    def log(self, record: Record) -> None:
        """Add a point to each curve."""
        for name, value in metrics_of(record).items():
            self.writer.add_scalar(name, value, record.step)
        self.writer.flush()


class WandbLogger(Logger):
    """Curves over the steps of a pruning, and its recipe as configuration, in a run of Weights & Biases.

    The curves have an axis of their own, `pruning/step`, beside that of a training which the run may log.

    Args:
        run: what `wandb.init` gave; by default `wandb.init(**settings)` begins one.
        settings: of that, such as `project`.

    Raises:
        InputError: where wandb is not installed, or a run and settings are given.
    """

    def __init__(self, run: Any = None, **settings: Any) -> None:
        if run is not None and settings:
            raise InputError(f"WandbLogger: {next(iter(settings))} is for a new run, but one is given")
        self.run = imported("wandb", "WandbLogger").init(**settings) if run is None else run

    def start(self, recipe: Recipe, steps: int) -> None:
        """Write the recipe."""
        self.run.define_metric("pruning/step")
        for names in ("pruning/*", "measured/*"):
            self.run.define_metric(names, step_metric="pruning/step")
        self.run.config.update({"recipe": recipe.to_dict()}, allow_val_change=True)

    def log(self, record: Record) -> None:
        """Add a point to each curve."""
        self.run.log({"pruning/step": record.step, **metrics_of(record)})


_MOST_PARAMETERS = 100
"""Of a run, that MLflow takes at once."""


class MLflowLogger(Logger):
    """Metrics by the steps of a pruning, and the settings of its recipe as parameters, in a run of MLflow.

    Args:
        run_id: of the run; by default the active one, or else a new one.

    Raises:
        InputError: where mlflow is not installed.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._mlflow = imported("mlflow", "MLflowLogger")
        if run_id is None:
            run_id = (self._mlflow.active_run() or self._mlflow.start_run()).info.run_id
        self.run_id = run_id

    def start(self, recipe: Recipe, steps: int) -> None:
        """Write the recipe."""
        settings = list(_flat(recipe.to_dict(), "recipe").items())
        for first in range(0, len(settings), _MOST_PARAMETERS):
            self._mlflow.log_params(dict(settings[first : first + _MOST_PARAMETERS]), run_id=self.run_id)

    def log(self, record: Record) -> None:
        """Add a value to each metric; one that is not finite is no number of theirs."""
        finite = {name: value for name, value in metrics_of(record).items() if math.isfinite(value)}
        self._mlflow.log_metrics(finite, step=record.step, run_id=self.run_id)


def _flat(values: Mapping[str, Any], place: str) -> dict[str, Any]:
    """Settings by their dotted keys, such as "recipe.schedule.steps"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        under = f"{place}.{key}"
        found |= _flat(value, under) if isinstance(value, Mapping) else {under: value}
    return found


def logger_named(text: str) -> Logger:
    """The logger of a name, as it is typed: tensorboard=FOLDER, wandb[=PROJECT] or mlflow[=RUN_ID].

    Raises:
        InputError: for another name, for tensorboard without a folder, or where its package is not installed.
    """
    name, _, where = text.partition("=")
    if name not in _NAMED:
        raise InputError(f"there is no logger {name!r}{instead(name, _NAMED)}")
    if name == "tensorboard" and not where:
        raise InputError("the logger 'tensorboard' needs a folder: tensorboard=FOLDER")
    return _NAMED[name](where)


_NAMED: dict[str, Callable[[str], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": lambda project: WandbLogger(**({"project": project} if project else {})),
    "mlflow": lambda run_id: MLflowLogger(run_id or None),
}
