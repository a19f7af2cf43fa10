"""The one loop over the steps of a recipe: `prune()` walks it, or a training loop with a session."""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.batches import Batches, Inputs, as_batches
from prunekit.digests import KEY
from prunekit.errors import DataError, InputError, ModelError, StarvedLayerWarning, shown
from prunekit.graph import VerificationError, zero_dead
from prunekit.graph.surgery import count_parameters
from prunekit.history import Pruned, Record
from prunekit.masks import MaskedOptimizer, Masks, check_attachable, hooked
from prunekit.modes import Snapshot
from prunekit.parts.context import StepContext
from prunekit.parts.quantize import Counted, LayerQuantizer
from prunekit.parts.regularize import check_gradients_are_there
from prunekit.parts.retrain import Checkpoints
from prunekit.parts.schedule import Step
from prunekit.parts.stopping import Held, Stopped
from prunekit.pruning.calibration import Calibration, norms_with_statistics, two_examples
from prunekit.pruning.scoring import Scorer
from prunekit.pruning.state import Owner, State, digest_of, read_state
from prunekit.pruning.trainings import Trainings, check_apart
from prunekit.recipe import Plan, Recipe
from prunekit.seeds import derive
from prunekit.settings import WHOLE, checked_seed, whole
from prunekit.targets import unwrap
from prunekit.task import PLAIN, LossFunction, Task
from prunekit.training import Loop, Report, copy_state

log = logging.getLogger(__name__)

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
    report: Report | None = None,
    example_inputs: Inputs | None = None,
    teacher: nn.Module | None = None,
) -> Pruned:
    """Prune a network in place, following a recipe. To keep the dense one, pass `copy.deepcopy(model)`.

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
        report: told how far the trainings of a step are, those before the first removal and in `quantize`
            counted in.
        example_inputs: what the network can be run on, for recipes that find out so what is coupled in it; by
            default the first two of the data.
        teacher: the network that the recipe's `teacher` learns from, where that is a given one; it is copied.

    Raises:
        InputError, ModelError, DataError: before anything is changed; data is tried on the network first.
        Exception: whatever the training, a repair or `evaluate` raises later; the network is put back as it
            was then.
    """
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
        example_inputs=example_inputs,
        teacher=teacher,
    )
    with session.undoing(steps=len(session.plan.steps), evaluated=evaluate is not None):
        for _ in session.run(evaluate=evaluate, report=report):
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
        example_inputs: Inputs | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        if not isinstance(recipe, Recipe):
            raise InputError(
                f"the recipe must be a Recipe, not {recipe!r}: "
                "for a named method write prunekit.methods.recipe('magnitude', sparsity=0.9)"
            )
        self.model = model
        self.recipe = recipe
        self.task = _task_of(task, loss)
        read = partial(self.task.read, model=model)
        self._data: Batches | None = None if data is None else as_batches(data, read)
        self._undo_held = False
        self._tried: set[bool] = set()
        if recipe.stop.needs_data and self._data is None and validation is None:
            raise InputError(f"the recipe's stop {recipe.stop.name!r} needs data, but no data is given")
        if recipe.needs_data and self._data is None:
            raise InputError(f"the recipe's {self._who_needs_data()} needs data, but no data is given")
        # what can fail after the first weight has changed
        changes = recipe.repair.changes or recipe.allocation.changes or recipe.quantize.changes
        self._may_fail = recipe.trains or recipe.stop.needs_data or changes
        stateful = recipe.parts_with("initial_state")
        if recipe.by_example and example_inputs is None and self._data is not None:
            example_inputs = two_examples(model, self._data).inputs
        self._example_inputs = example_inputs
        self.plan: Plan = recipe.plan(model, example_inputs)
        elements = self.plan.elements
        self._inner = elements.model
        self._seed = checked_seed(seed)
        self._teacher = self._checked(teacher)
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
        self._masked: MaskedOptimizer | None = None
        self._every: int | None = None
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
        self._scorer = Scorer(recipe, self.plan, self._calibration, self._seed, example_inputs, self._state)

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

    def run(self, *, evaluate: Evaluate | None = None, report: Report | None = None) -> Iterator[Record]:
        """Take the steps that are left, each with its retraining, and yield what each achieved.

        A step that the recipe's `stop` rolls back is neither yielded nor in the history. Where a step fails,
        network and session are what they were before it.
        """
        if self.recipe.trains or self.recipe.retrain.changes:
            self._trainings.check(self._state.checkpoints, warm_up=not self._warmed_up)
        if not self.done:
            self._try_data(retraining=True)
        while not self.done:
            with self.undoing(steps=1, evaluated=evaluate is not None):
                record = self._whole_step(evaluate, report)
            if record is None:
                return
            yield record

    def _whole_step(self, evaluate: Evaluate | None, report: Report | None) -> Record | None:
        """The next step with its retraining; None where it was rolled back."""
        started = time.perf_counter()
        step = self.plan.steps[len(self.history)]
        warms_up = bool(self.recipe.warm_ups) and not self._warmed_up
        retrains = self._retrains(step)
        quantizes = self.recipe.quantize.changes and step.number == len(self.plan.steps)
        if report is not None and self._data is not None:
            report = self._trainings.as_one(
                report,
                step,
                len(self.plan.steps),
                warm_up=warms_up,
                retrain=retrains,
                quantize=quantizes,
            )
        if warms_up:
            self._trainings.warm_up(self._context(step), report)
        self._hold()
        self._prune_step(step)
        train_loss = None
        if retrains and self.recipe.retrain.plan is not None:
            train_loss = self._trainings.retrain(self._context(step), len(self.plan.steps), report)
        if retrains and self._check(step.number) and self.recipe.stop.rolls_back:
            return None
        counted = self._quantize(step, report) if quantizes else None
        measured = evaluate(self.model) if evaluate is not None else {}
        return self._record(step, started, train_loss, measured, counted)

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
        self._check_own_loop()
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
        with self.undoing(steps=1):
            self._hold()
            restarted = self._prune_step(step)
            self._begin(step)
        if self._masked is not None and restarted:
            self._masked.forget()
        record = self._record(step, started, None, {})
        if self.done:
            _warn_of_starved(self)
        return record

    def check(self) -> Stopped | None:
        """Measure what a training loop of one's own has made of the last step; `advance()` does so by itself.

        To be called once more when the loop has retrained after the last step.

        Returns:
            Why the pruning has ended, if the recipe's `stop` says so; the network is rolled back then if the
            recipe says that, too.
        """
        self._check(len(self.history))
        return self.stopped

    def _check(self, step: int) -> bool:
        """Whether the limit is broken, now or before; the network goes back then if the recipe says so."""
        state, stop = self._state, self.recipe.stop
        held = state.held
        if held is None or state.stopped is not None:
            return state.stopped is not None
        assert state.allowed is not None
        error = self._calibration.error(stop)
        state.held = None
        if error <= state.allowed:
            return False
        state.stopped = Stopped(step, error, state.allowed, stop.rolls_back)
        if held.state is not None:
            self._inner.load_state_dict(held.state)
            del state.history[held.steps :]
            self._keep(held.kept)
            if self._masked is not None:
                self._masked.update(self.masks)
                self._masked.forget()
        return True

    def _hold(self) -> None:
        """Keep what the network is, unless an earlier one is kept that was the last to be measured."""
        state, stop = self._state, self.recipe.stop
        if not stop.needs_data:
            return
        if state.allowed is None:
            # compared with errors after a training, or else after statistics were taken anew
            untrained = self._masked is None and self.recipe.retrain.plan is None
            before = self._calibration.error(stop, recalibrated=untrained)
            if not math.isfinite(before):
                raise DataError(f"stop {stop.name}: the error of the network before pruning is {before}")
            state.allowed = stop.allowed(before)
        if state.held is None:
            values = copy_state(self._inner) if stop.rolls_back else None
            state.held = Held(len(state.history), state.kept, values)

    def _keep(self, kept: Masks) -> None:
        self._state.kept, self._state.masks = kept, self.plan.elements.masks(kept)

    def _go_on_from(self, state: State) -> None:
        self._state.take_over(state)
        self._trainings.forget_batch_loss()

    def _context(self, step: Step) -> StepContext:
        """What the parts are told at a step, before anything is measured."""
        return StepContext.of(
            self.plan.elements,
            self.recipe.granularity,
            self.kept,
            step=step,
            states=self._state.parts,
            masks=self.masks,
            teacher=self._teacher,
        )

    def _prune_step(self, step: Step) -> bool:
        if self.recipe.recalibrate and not self.history:
            self._calibration.recalibrate()
        context = self._context(step)
        with torch.no_grad():
            for key, part in self.recipe.parts_with("before_step"):
                part.before_step(context.told(key))
        context = replace(context, statistics=self._scorer.measure(context))
        context = replace(context, scores=self._scorer.scores(context))
        self._keep(self._scorer.select(context))
        # before the masks act: a repair looks at the values that go
        if self.recipe.repair.changes:
            self.recipe.repair(context.told("repair", kept_after=self.kept, masks=self.masks))
        self.masks.apply(self._inner)
        restarted = False
        if self.recipe.retrain.changes and self._retrains(step):
            # until then the trained values go on being ranked by
            restarted = self.recipe.retrain.restart(
                context.told("retrain", masks=self.masks),
                self._state.checkpoints,
                derive(self._seed, "step", step.number),
            )
            self.masks.apply(self._inner)
        if self._masked is not None:
            self._masked.update(self.masks)
        # the loop of a user who attached trains
        if self._calibration.norms and (self._masked is None or self.recipe.recalibrate):
            self._calibration.recalibrate()
        return restarted

    def _quantize(self, step: Step, report: Report | None) -> Counted:
        """Few values for the weights that the last step and its retraining have left."""
        part = self.recipe.quantize
        context = self._context(step)
        if part.measures and (names := part.filled(self._inner)):
            context = replace(context, statistics=self._scorer.collected(context, names, part.measures))
        self._trainings.quantize(context, report)
        if not part.plans and self._calibration.norms:
            self._calibration.recalibrate()
        if isinstance(part, LayerQuantizer) and part.zero_dead:
            self._zero_dead()
        part.round_rest(self._inner)
        if self.recipe.granularity.counts == "weights":  # those that have become zero are removed, too
            values = {name: self._inner.get_parameter(name).detach() for name in self.kept}
            self._keep(Masks({name: kept & (values[name] != 0) for name, kept in self.kept.items()}))
        return Counted.of(self._inner, part.targets(self._inner))

    def _zero_dead(self) -> None:
        """Zero the units that died, whose constants biases take while they are not rounded yet.

        They stay what they are where nothing can be told of the network.
        """
        inputs = self._example_inputs
        if inputs is None and self._data is not None:
            inputs = two_examples(self.model, self._data).inputs
        if inputs is not None:
            try:
                zero_dead(self._inner, inputs, masks=self.masks)
            except (InputError, ModelError, VerificationError) as error:
                log.info("dead units stay as they are: %s", error)

    def _check_own_loop(self) -> None:
        """Refuse a recipe that trains by itself where a loop of the user's does."""
        if self.recipe.quantize.changes:
            raise InputError(
                f"the recipe's {self.recipe.called('quantize')} acts behind the last step's retraining, of "
                "which a loop of your own knows the end: run the recipe with prune()"
            )

    @property
    def _warmed_up(self) -> bool:
        """Whether the network was trained before the first removal, here or by a loop of the user's."""
        return bool(self.history) or self._state.optimizer_steps > 0

    def _retrains(self, step: Step) -> bool:
        """Whether a step ends with what follows it, rather than with the next one."""
        last = step.number == len(self.plan.steps)
        return last or self.recipe.retrain.plan is None or step.number % self.recipe.retrain_every == 0

    def _record(
        self,
        step: Step,
        started: float,
        train_loss: float | None,
        measured: Mapping[str, float],
        counted: Counted | None = None,
    ) -> Record:
        layers = {name: int(kept.sum()) for name, kept in self.kept.items()}
        record = Record(
            step=step.number,
            sparsity=self.kept.sparsity,
            kept=sum(layers.values()),
            total=self.kept.total,
            layers=layers,
            compression_ratio=self._compression_ratio(),
            train_loss=train_loss,
            seconds=time.perf_counter() - started,
            measured={name: _plain(value) for name, value in measured.items()},
            levels={} if counted is None else counted.levels,
            bits=None if counted is None else counted.bits,
        )
        self.history.append(record)
        return record

    def _compression_ratio(self) -> float:
        if self.recipe.granularity.counts == "weights":
            return self.kept.compression_ratio
        whole = count_parameters(self._inner)
        left = whole - (self.masks.total - self.masks.kept)
        return whole / left if left else math.inf

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
        self._check_own_loop()
        if self._masked is not None and self._masked.optimizers:
            raise InputError("the session is attached to an optimizer already: detach() it first")
        check_attachable(self.model, optimizer, self.masks)
        if self._trainings.acting:
            for each in hooked(optimizer):
                check_gradients_are_there("a part of the recipe", each)
        self._check_attachable(every)
        if not self.done:
            self._try_data(retraining=False)
        self._keep_checkpoint()
        self._every = every
        self._masked = self._act_on(optimizer)
        self._begin()

    def _act_on(self, optimizer: Any, *, resume: bool = False) -> MaskedOptimizer:
        before = self._before_user_step if self._trainings.acting else None
        return MaskedOptimizer(
            self.model, optimizer, self.masks, before=before, after=self._after_step, resume=resume
        )

    def _check_attachable(self, every: int | None) -> None:
        wanted = self.recipe.retrain.checkpoint
        own = self._inner.state_dict()
        to_come = {} if wanted is None else {wanted: own}  # kept when the loop gets there
        checkpoints = self._state.checkpoints
        self._trainings.check_restart({**to_come, **checkpoints})
        if wanted is not None and wanted not in checkpoints and every is not None and every < wanted:
            raise InputError(
                f"every = {every}: the first step would go back to the values at step {wanted} of the "
                "training, which are still to come"
            )

    def detach(self) -> None:
        """Take the hooks off the optimizer; the model stays pruned as it is."""
        if self._masked is not None:
            self._masked.remove()
        self._masked = None

    def training_loss(self, inputs: Inputs, outputs: Any, targets: Any) -> Tensor:
        """The loss of a batch for a training loop of one's own, as the recipe's parts want it.

        It is the task's loss (the session's `loss`) until the first step of the pruning, and where no part
        changes it, as the retraining `distill` does.

        Args:
            inputs: of the batch.
            outputs: of the network in training.
            targets: of the batch.
        """
        loss = self.task.loss(outputs, targets)
        if not self.history:
            return loss
        return self._trainings.batch_loss(self._last_step, self._context, inputs, outputs, targets, loss)

    def _begin(self, step: Step | None = None) -> None:
        """Let parts see the first batch of a loop of the user's after a step, which is the last one taken."""
        step = self._last_step if step is None and self.history else step
        if step is not None and self._masked is not None and self.recipe.parts_with("training_loss"):
            self._trainings.begin(self._context(step))

    @property
    def _last_step(self) -> Step:
        return self.plan.steps[max(len(self.history) - 1, 0)]

    def _before_user_step(self) -> None:
        self._trainings.before_optimizer_step(self._context(self._last_step))

    def _keep_checkpoint(self) -> None:
        """Keep the values that the recipe rewinds to, when the loop is at that step of its training."""
        steps, checkpoints = self._state.optimizer_steps, self._state.checkpoints
        if self.recipe.retrain.checkpoint == steps and steps not in checkpoints:
            checkpoints[steps] = copy_state(self._inner)

    def _after_step(self) -> None:
        self._state.optimizer_steps += 1
        self._keep_checkpoint()
        if self._every is not None and self._state.optimizer_steps % self._every == 0:
            if self.done:
                self.check()
            else:
                self.advance()

    # ---- interruption ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that the session needs to go on, as plain values and tensors, for your checkpoint.

        Save it beside the state dicts of the model and of the optimizer; `torch.load(weights_only=True)`
        reads it. It carries a digest of its content, by which damage is noticed.
        """
        values = {"recipe": self.recipe.to_dict(), "seed": self._seed, **self._state.to_dict()}
        return {**values, KEY: digest_of(values)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another session of the same recipe, seed and model was.

        Raises:
            InputError: if the state is damaged, or belongs to another recipe, seed or model; nothing is
                changed then.
        """
        self._go_on_from(read_state(state, Owner(self.recipe, self.plan, self._seed, self._state)))
        self.masks.apply(self._inner)
        if self._masked is not None:
            self._masked.resume(self.masks)
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        """What is saved is attached to no optimizer."""
        return {**vars(self), "_masked": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Session:
        """A session that is attached to the copy of the optimizer, if one is made with it."""
        twin = object.__new__(type(self))
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(self.__getstate__(), memo))
        if self._masked is not None and self._masked.optimizers:
            twin._masked = twin._act_on(copy.deepcopy(self._masked.groups, memo), resume=True)
            twin._begin()
        return twin

    def _checked(self, teacher: nn.Module | None) -> nn.Module | None:
        """The teacher, if the recipe learns from one that is given; what the recipe learns from must fit."""
        part = self.recipe.teacher
        if teacher is None:
            if part is not None and part.of == "given":
                raise InputError(
                    "the recipe's teacher is 'of: given', but none is given: give prune() teacher=a network, "
                    "or take 'of: before'"
                )
        elif part is None or part.of != "given":
            raise InputError(
                "a teacher is given, but the recipe learns from none: set its teacher's 'of: given'"
            )
        elif not isinstance(teacher, nn.Module):
            raise InputError(f"the teacher must be a torch.nn.Module, not {shown(teacher)}")
        elif unwrap(teacher) is self._inner:
            raise InputError(
                "the teacher is the network that is pruned: take 'of: before', or give copy.deepcopy(model)"
            )
        if part is not None and self._data is not None:
            batch = two_examples(self.model, self._data)
            part.check_teacher(self._inner, self._inner if teacher is None else teacher, batch, self.task)
        return teacher

    def _who_needs_data(self) -> str:
        parts = self.recipe.parts.items()
        keys = [key for key, part in parts if part.needs or getattr(part, "needs_data", False)]
        return self.recipe.called(keys[0]) if keys else "recalibrate"

    @property
    def _recalibrates(self) -> bool:
        """Whether running statistics are measured anew: by default where units go and nothing is trained."""
        if self.recipe.recalibrate is not None:
            return self.recipe.recalibrate
        of_units = self.recipe.granularity.counts != "weights"
        return of_units and self.recipe.retrain.plan is None and self._data is not None


def _task_of(task: Task | None, loss: str | LossFunction | None) -> Task:
    if task is None:
        return PLAIN if loss is None else Task(loss)
    if not isinstance(task, Task):
        raise InputError(f"task must be a prunekit.Task, not {type(task).__name__}")
    if loss is not None:
        raise InputError("give either 'loss' or 'task', which has a loss of its own")
    return task


def _plain(value: Any) -> Any:
    """A figure as a number of Python: those of NumPy and torch do not go into every checkpoint."""
    return value.item() if hasattr(value, "item") else value
