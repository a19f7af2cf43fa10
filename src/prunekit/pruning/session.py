"""The one loop over the steps of a recipe: `prune()` walks it, or a training loop with a session."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.batches import Batches, Inputs, as_batches
from prunekit.digests import KEY
from prunekit.distributed import failing_together, together
from prunekit.errors import InputError, StarvedLayerWarning, shown
from prunekit.history import Pruned, Record
from prunekit.loggers import Logger, Loggers
from prunekit.masks import Masks
from prunekit.modes import Snapshot
from prunekit.parts.allocation import GRID
from prunekit.parts.retrain import Checkpoints
from prunekit.parts.stopping import Stopped
from prunekit.pruning.calibration import Calibration, check_names, norms_with_statistics, two_examples
from prunekit.pruning.own_loop import OwnLoop
from prunekit.pruning.state import Owner, State, digest_of, read_state
from prunekit.pruning.step_work import Scorer, StepWork
from prunekit.pruning.stop_check import StopCheck
from prunekit.pruning.time_ahead import announce
from prunekit.pruning.trainings import Trainings, check_apart, checked_teacher
from prunekit.pruning.turn_statistics import TurnStatistics
from prunekit.recipe import Plan, Recipe, recipe_refusal
from prunekit.settings import WHOLE, checked_seed, whole
from prunekit.task import PLAIN, LossFunction, Task, task_of
from prunekit.training import Loop, check_loop

if TYPE_CHECKING:
    from prunekit.pruning.layer_sensitivity import Metric, SensitivityCurves

Evaluate = Callable[[nn.Module], Mapping[str, float]]
"""Measures a network after a step, for the history: names and values."""


def prune(
    model: nn.Module,
    recipe: Recipe,
    data: Any = None,
    *,
    seed: int = 0,
    loss: str | LossFunction | None = None,
    task: Task | None = None,
    loop: Loop | None = None,
    checkpoints: Checkpoints | None = None,
    validation: Any = None,
    evaluate: Evaluate | None = None,
    loggers: Iterable[Logger] = (),
    example_inputs: Inputs | None = None,
    teacher: nn.Module | None = None,
) -> Pruned:
    """Prune a network in place, following a recipe. To keep the dense one, pass `copy.deepcopy(model)`.

    Under torch.distributed all processes call it together, each with its own part of the data, such as
    `prunekit.distributed.shard(data)`; they end with the same masks and weights.

    Args:
        model: a trained network.
        recipe: what to do.
        data: training examples, if the recipe scores by data or retrains: `(inputs, targets)` in memory, a
            dataset, or a loader of batches of any kind; see `prunekit.batches.as_batches`.
        seed: of everything random.
        loss: what is scored by and minimised in retraining: a name, a loss of `torch.nn`, or a function
            (outputs, targets) -> the mean over a batch; by default as `prunekit.Task` says. A retraining
            whose own settings name a loss keeps that, and so do scores of units that have a setting `error`.
        task: in place of `loss`, how the network is fed a batch and what its loss is.
        loop: what of the retraining's loop is the user's own: optimizer, scheduler, clipping, accumulation,
            mixed precision, averaging.
        checkpoints: states of the dense training by step, for recipes that rewind.
        validation: examples of the same kinds as `data`, on which a recipe's `stop` measures the error; by
            default the recipe's calibration sample of `data`.
        evaluate: measures the network after each step, for the history.
        loggers: told what each step achieved, and how far what is measured of units at it is, and its
            trainings, those before the first removal and in `quantize` counted in; see `prunekit.loggers`.
        example_inputs: what the network can be run on, for recipes that find out so what is coupled in it; by
            default the first two of the data.
        teacher: the network that the recipe's `teacher` learns from, where that is a given one; it is copied.

    Raises:
        InputError, ModelError, DataError: before anything is changed; data is tried on the network first.
        Exception: whatever the training, a repair or `evaluate` raises later; the network is put back as it
            was then. Of several processes the others raise a PrunekitError that says what it was.
    """
    if evaluate is not None and not callable(evaluate):
        raise InputError(f"evaluate must be a function of the network, not {shown(evaluate)}")
    # gradients are computed also where the caller is in `no_grad` or in inference mode
    with (
        failing_together() if together() else nullcontext(),
        torch.inference_mode(False),
        torch.enable_grad(),
    ):
        session = Session(
            model,
            recipe,
            data=data,
            seed=seed,
            loss=loss,
            task=task,
            loop=loop,
            checkpoints=checkpoints,
            validation=validation,
            loggers=loggers,
            example_inputs=example_inputs,
            teacher=teacher,
        )
        if recipe.parts_with("solving_seconds"):
            announce(session.plan, recipe)
        with session.undoing(steps=len(session.plan.steps), evaluated=evaluate is not None):
            for _ in session.run(evaluate=evaluate):
                pass
    _warn_of_starved(session)
    return session.result()


def _warn_of_starved(session: Session) -> None:
    """Warn of layers that keep almost nothing, from the caller of who calls this."""
    for each in session.kept.starved(session.recipe.granularity.counts):
        warnings.warn(each, StarvedLayerWarning, stacklevel=3)


class Session:
    """A pruning under way: the plan, the masks so far and what each step achieved.

    `state_dict()` and `load_state_dict()` carry it over an interruption, to the same result bit for bit.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        data: Any = None,
        seed: int = 0,
        loss: str | LossFunction | None = None,
        task: Task | None = None,
        loop: Loop | None = None,
        checkpoints: Checkpoints | None = None,
        validation: Any = None,
        loggers: Iterable[Logger] = (),
        example_inputs: Inputs | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.model = model
        if not isinstance(recipe, Recipe):
            raise recipe_refusal(recipe)
        self.recipe = recipe
        self._loggers, self._logged = None if loggers == () else Loggers(loggers), False
        self.task = PLAIN if task is None and loss is None else task_of(task, loss)
        read = partial(self.task.read, model=model)
        self._data: Batches | None = None if data is None else as_batches(data, read)
        self._undo_held = False
        self._tried: set[bool] = set()
        if self._data is None:
            self._check_needs_none(validated=validation is not None)
        # what can fail after the first weight has changed
        changes = recipe.repair.changes or recipe.allocation.changes or recipe.quantize.changes
        self._may_fail = recipe.trains or recipe.stop.needs_data or changes
        stateful = recipe.parts_with("initial_state")
        if recipe.by_example and example_inputs is None and self._data is not None:
            two = two_examples(model, self._data)
            check_names(model, "the data", two, self.task)
            example_inputs = two.inputs
        self.plan: Plan = recipe.plan(model, example_inputs)
        elements = self.plan.elements
        self._inner = elements.model
        self._seed = checked_seed(seed)
        if teacher is not None or recipe.teacher is not None:
            teacher = checked_teacher(teacher, recipe, model, self._inner, self._data, self.task)
        if loop is not None:
            check_loop(loop)
        if checkpoints:
            check_apart(self._inner, checkpoints)
        norms = norms_with_statistics(self._inner) if self._recalibrates else []
        self._may_fail |= bool(norms)
        kept = elements.all_kept()
        found = {key: part.initial_state(self._inner, elements.parameters) for key, part in stateful}
        self._state = State(
            kept,
            elements.masks(kept),
            {key: own for key, own in found.items() if own},
            checkpoints=dict(checkpoints or {}),
        )
        self._calibration = Calibration(
            self._inner,
            elements,
            self._data,
            None if validation is None else as_batches(validation, read),
            recipe.calibration,
            self._seed,
            self.task,
            norms,
            loop,
        )
        self._trainings = Trainings(model, self._inner, recipe, self._data, self._seed, self.task, loop)
        scorer = Scorer(
            recipe,
            self.plan,
            self._calibration,
            self._seed,
            example_inputs,
            self._state,
            None if self._loggers is None else self._loggers.measuring,
        )
        self._work = StepWork(
            self.plan, self._state, self._calibration, self._trainings, scorer, example_inputs, teacher
        )
        self._stop = StopCheck(self._work)
        self._loop = OwnLoop(self._work, self._go_on)

    def __repr__(self) -> str:
        done, steps = len(self.history), len(self.plan.steps)
        counts = self.recipe.granularity.counts
        return f"<Session: {done} of {steps} steps, {self.kept.kept:,} of {self.kept.total:,} {counts} kept>"

    # ---- where it is -------------------------------------------------------------------------------------

    @property
    def kept(self) -> Masks:
        """What is chosen from, True = kept: the masks themselves, or flags of units or maxout pieces."""
        return self._state.kept

    @property
    def masks(self) -> Masks:
        """The same over the parameters."""
        return self._state.masks

    @property
    def history(self) -> list[Record]:
        """What each step achieved."""
        return self._state.history

    @property
    def stopped(self) -> Stopped | None:
        """Why the recipe's `stop` has ended the pruning, once it has."""
        return self._state.stopped

    @property
    def done(self) -> bool:
        """Whether every step of the plan has been taken, or the recipe's `stop` has ended it before."""
        return self.stopped is not None or len(self.history) == len(self.plan.steps)

    def scores(self) -> Mapping[str, Tensor]:
        """What the next step would rank, measured on the network as it is; nothing is changed.

        By parameter, or by group of units; minus infinity for what is removed already.
        """
        self._try_data(retraining=False)
        return self._work.scored(self._work.context(self.plan.steps[len(self.history)])).scores

    def result(self) -> Pruned:
        """The pruned network as it is now."""
        return Pruned(
            self.model,
            self.masks,
            tuple(self.history),
            self.recipe,
            self.kept,
            stopped=self.stopped,
            coupled=self.plan.elements.coupled,
        )

    # ---- the loop ----------------------------------------------------------------------------------------

    def run(self, *, evaluate: Evaluate | None = None) -> Iterator[Record]:
        """Take the steps that are left, each with its retraining, and yield what each achieved.

        A step that the recipe's `stop` rolls back is neither yielded nor in the history. Where a step fails,
        network and session are what they were before it.
        """
        if self.recipe.trains or self.recipe.retrain.changes:
            self._trainings.check(self._state.checkpoints, warm_up=not self._warmed_up)
        if not self.done:
            self._try_data(retraining=True)
        turns = self._work.in_turn() if self._undo_held and evaluate is None else None
        while not self.done:
            self._start_logging()
            with self.undoing(steps=1, evaluated=evaluate is not None):
                record = self._whole_step(evaluate, turns)
            if record is None:
                return
            if self._loggers:
                self._loggers.log(record)
            yield record

    def _start_logging(self) -> None:
        if self._loggers and not self._logged:
            self._loggers.start(self.recipe, len(self.plan.steps))
        self._logged = True

    def _whole_step(self, evaluate: Evaluate | None, turns: TurnStatistics | None) -> Record | None:
        """The next step with its retraining; None where it was rolled back."""
        started = time.perf_counter()
        step = self.plan.steps[len(self.history)]
        warms_up = bool(self.recipe.warm_ups) and not self._warmed_up
        retrains = self._work.retrains(step)
        quantizes = self.recipe.quantize.changes and step.number == len(self.plan.steps)
        report = None
        if self._loggers and self._data is not None:
            report = self._trainings.as_one(
                self._loggers.progress,
                step,
                len(self.plan.steps),
                warm_up=warms_up,
                retrain=retrains,
                quantize=quantizes,
            )
        if warms_up:
            self._trainings.warm_up(self._work.context(step), report)
        self._hold()
        self._work.remove(step, self._loop.masked, turns)
        train_loss = None
        if retrains and self.recipe.retrain.plan is not None:
            train_loss = self._trainings.retrain(self._work.context(step), len(self.plan.steps), report)
            self._work.check_agreement()
        if retrains and self._broken(step.number) and self.recipe.stop.rolls_back:
            return None
        counted = self._work.quantize(step, report) if quantizes else None
        measured = evaluate(self.model) if evaluate is not None else {}
        return self._work.record(step, started, train_loss, measured, counted)

    @contextmanager
    def undoing(self, *, steps: int, evaluated: bool = False) -> Iterator[None]:
        """What is begun inside is done wholly, or network and session are put back as they were.

        The network is copied for it only where something can fail after its first weight has changed.

        Args:
            steps: how many are taken inside.
            evaluated: whether code of the user's measures the network between them.
        """
        if self._undo_held:
            yield
            return
        values = Snapshot(self._inner) if steps > 1 or evaluated or self._may_fail else None
        before = self._state.copy()
        self._undo_held = True
        try:
            yield
        except BaseException:
            if values is not None:
                values.restore()
            self._go_on_from(before)
            raise
        finally:
            self._undo_held = False

    def _try_data(self, *, retraining: bool) -> None:
        """Refuse data that network or loss cannot take, once, before a weight changes."""
        recipe = self.recipe
        if retraining in self._tried:
            return
        looked_at = recipe.needs_data or recipe.stop.needs_data or bool(self._calibration.norms)
        if looked_at or (retraining and recipe.trains):
            self._calibration.check(recipe, retraining=retraining)
        self._tried |= {retraining, False}

    def advance(self) -> Record | None:
        """Take the next step of the schedule, for a training loop of one's own; no retraining is done here.

        Where the recipe has a `stop`, what the loop has made of the step before is measured first: None says
        that it broke the limit, which is in `stopped`, and that no step was taken.

        Raises:
            InputError: if all steps are taken already.
        """
        if self.done:
            raise InputError(
                f"the pruning has {self.stopped}"
                if self.stopped
                else f"all {len(self.plan.steps)} steps of the schedule are taken already"
            )
        self._loop.check_possible()
        self._try_data(retraining=False)
        if self.check() is not None:
            return None
        started = time.perf_counter()
        self._trainings.check_restart(self._state.checkpoints)
        for key in self.recipe.warm_ups:
            if not self._warmed_up:
                raise InputError(
                    f"the recipe's {self.recipe.called(key)} is a training: attach() the optimizer and train "
                    "before the first advance()"
                )
        step = self.plan.steps[len(self.history)]
        self._start_logging()
        with failing_together(), self.undoing(steps=1):
            self._hold()
            restarted = self._work.remove(step, self._loop.masked)
            self._loop.begin(step)
        if self._loop.masked is not None and restarted:
            self._loop.masked.forget()
        record = self._work.record(step, started, None, {})
        if self._loggers:
            self._loggers.log(record)
        if self.done:
            _warn_of_starved(self)
        return record

    def sensitivity(
        self, sparsities: Sequence[float] = GRID, *, metric: Metric | None = None
    ) -> SensitivityCurves:
        """What the network loses where one layer (or group of units) alone is pruned, all else as it is now.

        The recipe's score ranks what is in the layer; nothing is repaired or trained, and the network is put
        back. The curves tell which layers to leave out by `ignore`, or to give less in the allocation
        `manual`; the allocation `sensitivity` does so by itself.

        Args:
            sparsities: at which each layer is tried, increasing, in (0, 1).
            metric: measures the network; by default its loss on the recipe's calibration sample.

        Raises:
            InputError: for other sparsities, a granularity that leaves layers no choice of their own, or
                where there is nothing to measure with.
            DataError, ModelError: as a step of the pruning.
        """
        from prunekit.pruning.layer_sensitivity import measure_sensitivity  # prunings do without it

        self._try_data(retraining=False)
        before = self._state.copy()  # ranks and statistics that are taken once are those of the first step
        try:
            return measure_sensitivity(self._work, self.model, sparsities, metric)
        finally:
            self._state.take_over(before)

    def check(self) -> Stopped | None:
        """Measure what a training loop of one's own has made of the last step; `advance()` does so by itself.

        To be called once more when the loop has retrained after the last step.

        Returns:
            Why the pruning has ended, if the recipe's `stop` says so; the network is rolled back then if the
            recipe says that, too.
        """
        self._broken(len(self.history))
        return self.stopped

    def _hold(self) -> None:
        if self.recipe.stop.needs_data:
            self._stop.hold(self._loop.masked)

    def _broken(self, step: int) -> bool:
        return self.recipe.stop.needs_data and self._stop.broken(step, self._loop.masked)

    def _go_on_from(self, state: State) -> None:
        self._state.take_over(state)
        self._trainings.forget_batch_loss()

    @property
    def _warmed_up(self) -> bool:
        """Whether the network was trained before the first removal, here or by a loop of the user's."""
        return bool(self.history) or self._state.optimizer_steps > 0

    # ---- inside a training loop of the user's --------------------------------------------------------------

    def attach(self, optimizer: Optimizer | Sequence[Optimizer], *, every: int | None = None) -> None:
        """Let the masks act on gradients and after each step; with `every`, advance by itself.

        The values at the steps that the recipe rewinds to are kept as they go by.

        Args:
            optimizer: of the loop, or all of them if there are several; also wrapped, or around others. The
                steps of the last one are counted. Where a part adds up gradients, as movement, a `GradScaler`
                of several has to `unscale_` all of them before the first one's step.
            every: advance by itself after this many steps.

        Raises:
            InputError: if `every` is no whole number of at least 1, or the optimizer does not train this
                network or carries masks of it already; nothing is attached then.
        """
        if every is not None:
            every = whole("every", every, 1, WHOLE)
        self._loop.check_attachable(optimizer, every)
        if not self.done:
            self._try_data(retraining=False)
        self._loop.attach(optimizer, every)

    def _go_on(self) -> None:
        """The next step, in a loop of the user's; behind the last one its outcome is measured."""
        if self.done:
            self.check()
        else:
            self.advance()

    def detach(self) -> None:
        """Take the hooks off the optimizer; the model stays pruned as it is."""
        self._loop.detach()

    def training_loss(self, inputs: Inputs, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch for a training loop of one's own, as the recipe's parts want it.

        It is the task's loss (the session's `loss`) until the first step of the pruning, and where no part
        changes it, as the retraining `distill` does.

        Args:
            inputs: of the batch.
            outputs: of the network in training.
            targets: of the batch.
        """
        return self._loop.training_loss(inputs, outputs, targets)

    # ---- interruption ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the session needs to go on, as plain values and tensors, for your checkpoint.

        Save it beside the state dicts of the model and of the optimizer; `torch.load(weights_only=True)`
        reads it. It carries a digest of its content, by which damage is noticed.
        """
        values = {
            "recipe": self.recipe.to_dict(),
            "seed": self._seed,
            "every": self._loop.every,
            **self._state.to_dict(),
        }
        return {**values, KEY: digest_of(values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another session of the same recipe, seed and model was.

        Raises:
            InputError: if the state is damaged, belongs to another recipe, seed or model, or was taken with
                another `every` than this session is attached with; nothing is changed then.
        """
        owner = Owner(self.recipe, self.plan, self._seed, self._state, self._loop.every)
        self._go_on_from(read_state(state, owner))
        self.masks.apply(self._inner)
        self._loop.resume()

    def _check_needs_none(self, *, validated: bool) -> None:
        """Refuse a recipe that needs data, as none is given, or only some to measure the error on."""
        recipe, parts = self.recipe, self.recipe.parts.items()
        if recipe.stop.needs_data and not validated:
            raise InputError(f"the recipe's stop {recipe.stop.name!r} needs data, but no data is given")
        if recipe.needs_data:
            keys = [key for key, part in parts if part.needs or getattr(part, "needs_data", False)]
            who = recipe.called(keys[0]) if keys else "recalibrate"
            raise InputError(f"the recipe's {who} needs data, but no data is given")

    @property
    def _recalibrates(self) -> bool:
        """Whether running statistics are measured anew: by default where units go and nothing is trained."""
        if self.recipe.recalibrate is not None:
            return self.recipe.recalibrate
        of_units = self.recipe.granularity.counts != "weights"
        return of_units and self.recipe.retrain.plan is None and self._data is not None
