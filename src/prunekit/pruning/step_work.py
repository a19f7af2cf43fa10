"""One step of a pruning: what is measured and scored, what goes, what becomes of the rest, its record."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Inputs
from prunekit.distributed import Owners, check_same, deal, of_first, processes, shared_layers, together
from prunekit.errors import DataError, InputError, ModelError, shown
from prunekit.history import Record
from prunekit.masked_optimizer import MaskedOptimizer
from prunekit.masks import Masks
from prunekit.parts.context import ASKED, REACHED, CostModel, LayerScores, StepContext
from prunekit.parts.quantize import Counted, LayerQuantizer
from prunekit.parts.schedule import Step
from prunekit.parts.scores import Random, Scores
from prunekit.pruning.calibration import Calibration, two_examples
from prunekit.pruning.state import State, asked_again
from prunekit.pruning.trainings import Trainings
from prunekit.pruning.turn_statistics import Around, TurnStatistics
from prunekit.recipe import Plan, Recipe
from prunekit.seeds import derive, generator
from prunekit.statistics import Found, StatContext, Statistic, collect
from prunekit.targets import count_parameters
from prunekit.training import Report

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Ranks what is left at every step, or once and for all if the recipe says so, and chooses what stays.

    Attributes:
        recipe: whose score ranks.
        plan: its steps, and what is removed.
        calibration: the data that is looked at.
        seed: of random scores and selections.
        example_inputs: on which the network can be run.
        state: of the session; what is taken once stays there.
        progress: told how far statistics are that take long.
    """

    recipe: Recipe
    plan: Plan
    calibration: Calibration
    seed: int
    example_inputs: Inputs | None
    state: State
    progress: Callable[[int, int], None] | None

    @property
    def competes(self) -> bool:
        """Whether what is removed competes again by its score; with a `grow` it comes back in exchange."""
        return self.recipe.regrow and self.recipe.grow is None

    @property
    def by_owner(self) -> bool:
        """Whether all parts that look at pairs of a layer's inputs do so in its owner alone."""
        readers = (part for part in self.recipe.parts.values() if any(each.of_pairs for each in part.needs))
        return all(part.by_owner for part in readers)

    def measured(self, context: StepContext, turns: TurnStatistics | None) -> StepContext:
        """The context with the statistics that score, selection and repair ask for at a step.

        Args:
            context: of the step.
            turns: where nothing but these steps changes the network.
        """
        needs = self.recipe.needs
        if turns is None or not needs or not self.plan.layer_by_layer or not turns.serves(needs):
            return replace(context, statistics=self.measure(context))
        return replace(context, statistics=turns.measure(context, needs), shared=turns.shared)

    def measure(self, context: StepContext) -> Found:
        """The statistics of a step, whatever may have changed since the last."""
        state, recipe = self.state, self.recipe
        if state.measured is not None:
            return state.measured
        names = context.step.layers if self.plan.layer_by_layer else list(context.weights)
        # what is ranked needs no second look
        needs = recipe.needs if state.ranking is None else asked_again(recipe)
        # what is measured once is saved with the session, which may go on with other processes
        owners = context.owners if self.by_owner and recipe.statistics != "once" else {}
        found = self.collected(context, names, needs, owners) if needs else {}
        if recipe.statistics == "once":
            state.measured = {statistic: found[statistic] for statistic in asked_again(recipe)}
        return found

    def collected(
        self,
        context: StepContext,
        names: Sequence[str],
        needs: Sequence[Statistic],
        owners: Owners | None = None,
        around: Around = nullcontext,
    ) -> Found:
        """Statistics of the parameters of these names, on the sample of the step.

        Args:
            context: of the step.
            names: of the parameters.
            needs: the statistics.
            owners: as of `StatContext`.
            around: as of `collect`.
        """
        sample = self.calibration
        subject = StatContext(
            context.model,
            names,
            kept=context.kept,
            coupled=context.coupled,
            owners=owners or {},
            progress=self.progress,
        )
        wrong: list[DataError] = []
        draw = 0 if self.recipe.grow is None else context.step.number
        judged = any(need.needs_loss for need in needs)
        batches = sample.batches(draw) if judged else sample.watched(wrong, draw)
        found = collect(subject, batches, needs, task=sample.task, around=around)
        if wrong:
            raise wrong[0]
        return found

    @property
    def one_by_one(self) -> bool:
        """Whether each layer is scored when its elements are chosen, and its scores forgotten then."""
        recipe = self.recipe
        alone = recipe.score.by_layer and recipe.allocation.by_size and recipe.granularity.counts == "weights"
        return alone and recipe.rank == "every_step" and recipe.grow is None

    def scores(self, context: StepContext) -> Mapping[str, Tensor]:
        """A score for each element, the least to go first.

        Raises:
            InputError: where the score gives none, or of another shape.
            ModelError: where one is NaN.
        """
        weights, kept = context.weights, context.kept
        if self.plan.layer_by_layer and self.recipe.score.needs:
            weights = {name: weights[name] for name in context.step.layers}

        def untaken(name: str) -> Tensor:
            # layers whose turn is another time only count by their size, which takes no memory
            return torch.zeros((), device=kept[name].device).expand(kept[name].shape)

        def alone(name: str) -> Tensor:
            if name not in weights:
                return untaken(name)
            score = self._ranked(context.told("score", weights={name: weights[name]}))[name]
            return self._removed_first(name, score, kept)

        if self.one_by_one:
            return LayerScores(kept, alone)
        scores = self.state.ranking
        if scores is None:
            random = generator(self.seed, "score", context.step.number)
            scores = self._ranked(context.told("score", weights=weights, generator=random))
        if self.recipe.rank == "once":
            self.state.ranking = scores
        scores = {name: self._removed_first(name, score, kept) for name, score in scores.items()}
        return {name: scores[name] if name in scores else untaken(name) for name in kept}

    def _removed_first(self, name: str, score: Tensor, kept: Masks) -> Tensor:
        """The scores of a layer, minus infinity for what is removed, unless that competes again.

        So what was removed stays removed, and pruning twice removes no more.
        """
        if self.recipe.grow is not None:
            # what comes back does so by another score; a weight that has just done so may still be zero
            return score.masked_fill(~kept[name], float("-inf"))
        if self.competes:
            return score
        removed = self.plan.elements.gone(name, kept)
        return score.masked_fill(removed, float("-inf")) if bool(removed.any()) else score

    def _ranked(self, context: StepContext) -> Scores:
        grow, score = self.recipe.grow, self.recipe.score
        if grow is not None and grow.start == "random" and context.step.round == 1:
            score = Random()
        with torch.no_grad():
            scores = self.recipe.granularity.gather(score(context), self.plan.elements)
        # some scores see a part of the layers only: those of a step, or one
        wanted = context.weights if self.recipe.granularity.counts == "weights" else context.kept
        return _checked(scores, f"score {score.name!r}", wanted, context.kept)

    def select(self, context: StepContext) -> Masks:
        """What is kept after a step: the allocation says how many of each layer, the selection which.

        Args:
            context: of the step, with the scores of all elements.
        """
        recipe, plan, elements = self.recipe, self.plan, self.plan.elements
        step, kept, scores = context.step, context.kept, context.scores
        frozen = frozenset(
            name
            for earlier in plan.steps[: step.number - 1]
            if earlier.round == step.round
            for name in earlier.layers
        )
        pruned = {
            name: each.numel() - kept.count(name) if name in frozen or not self.competes else 0
            for name, each in kept.items()
        }
        shielded = LayerScores(
            {name: kept[name] for name in step.layers}, lambda name: elements.shielded(name, scores[name])
        )

        @torch.no_grad()
        def keeping(amounts: Mapping[str, int]) -> Masks:
            def chosen(name: str) -> Tensor:
                random = generator(self.seed, "selection", step.number, name)
                told = context.told("selection", scores=shielded, generator=random)
                count = max(recipe.granularity.rounded(kept[name].numel(), amounts[name]), pruned[name])
                return recipe.selection(told, name, count)

            # all processes have a part in a score that is not the owner's alone
            owners = context.owners if recipe.selection.by_owner and self.by_owner else {}
            if not owners:
                return kept.replace({name: chosen(name) for name in step.layers})
            masks = shared_layers(step.layers, owners, chosen, lambda name: torch.empty_like(kept[name]))
            return kept.replace(masks)

        told = context.told(
            "allocation",
            loss_with=None if self.calibration.data is None else self.calibration.loss_with,
            pruned=pruned,
            frozen=frozen,
            min_kept={target.name: target.least for target in elements.targets},
            cost_model=CostModel(elements, keeping, self.example_inputs)
            if recipe.allocation.of_cost
            else None,
        )
        amounts = recipe.allocation.amounts(told)
        if recipe.grow is None:
            return keeping(amounts)
        left = {name: kept[name].numel() - max(amounts[name], pruned[name]) for name in step.layers}
        changed = {name: recipe.grow.exchanged(step, count) for name, count in left.items()}
        after = keeping({name: kept[name].numel() - left[name] + changed[name] for name in step.layers})
        if not any(changed.values()):
            return after
        random = generator(self.seed, "grow", step.number)
        with torch.no_grad():
            found = recipe.grow(context.told("grow", generator=random))
        place = f"grow score {recipe.grow.name!r}"
        return recipe.grow.grown(after, _checked(found, place, changed, kept), changed)


def _checked(scores: Scores, place: str, wanted: Iterable[str], like: Mapping[str, Tensor]) -> Scores:
    """The scores that are wanted, of the shapes that they must have."""
    for name in wanted:
        if name not in scores or scores[name].shape != like[name].shape:
            raise InputError(f"the {place} gave no scores of the shape of {name}")
        if bool(torch.isnan(scores[name]).any()):
            raise ModelError(f"the {place} of {name} is NaN")
    return {name: scores[name] for name in wanted}


@dataclass(eq=False)
class StepWork:
    """The parts of a recipe at work on a network, a step at a time.

    Attributes:
        plan: the steps, and what is chosen from.
        state: of the session, which steps change.
        calibration: takes running statistics anew.
        trainings: with the network and the recipe.
        scorer: measures, scores and selects.
        example_inputs: what the network can be run on; by default two examples of the data.
        teacher: a given one that the recipe learns from.
    """

    plan: Plan
    state: State
    calibration: Calibration
    trainings: Trainings
    scorer: Scorer
    example_inputs: Inputs | None = None
    teacher: nn.Module | None = None

    @property
    def recipe(self) -> Recipe:
        """Its parts."""
        return self.trainings.recipe

    @property
    def inner(self) -> nn.Module:
        """The network without wrappers."""
        return self.trainings.inner

    def keep(self, kept: Masks) -> None:
        """Let this be what is kept from now on; the weights stay as they are."""
        self.state.kept, self.state.masks = kept, self.plan.elements.masks(kept)

    def context(self, step: Step) -> StepContext:
        """What the parts are told at a step, before anything is measured."""
        return StepContext.of(
            self.plan.elements,
            self.recipe.granularity,
            self.state.kept,
            step=step,
            states=self.state.parts,
            masks=self.state.masks,
            teacher=self.teacher,
            owners=self._owners(),
        )

    def _owners(self) -> Owners:
        """The process that solves each layer, by the operations of an inverse and of a pass over all rows."""
        elements = self.plan.elements
        if not together() or processes() == 1 or elements.coupled is not None:
            return {}
        costs = {}
        for name, weight in elements.weights.items():
            columns = weight.numel() // len(weight)
            costs[name] = float(columns**2 * (columns + len(weight)))
        return deal(costs, processes())

    def retrains(self, step: Step) -> bool:
        """Whether a step ends with what follows it, rather than with the next one."""
        last = step.number == len(self.plan.steps)
        return last or self.recipe.retrain.plan is None or step.number % self.recipe.retrain_every == 0

    def in_turn(self) -> TurnStatistics | None:
        """Statistics of one layer after the other, where nothing but their pruning changes the network."""
        recipe = self.recipe
        changed = (
            recipe.trains or recipe.retrain.changes or bool(self.calibration.norms) or recipe.recalibrate
        )
        if changed or recipe.grow is not None or recipe.parts_with("before_step"):
            return None
        return TurnStatistics(self.scorer.collected)

    def remove(self, step: Step, masked: MaskedOptimizer | None, turns: TurnStatistics | None = None) -> bool:
        """Score, select, repair, and let the new masks act.

        Args:
            step: which it is.
            masked: the optimizer of a training loop of the user's.
            turns: of the steps before, where nobody else has the network between them.

        Returns:
            Whether the values are others than those that were trained, as of a rewind.
        """
        self.check_agreement()
        # in turn each step changes its own layer alone: what the others have lost is still zero
        acted = self.state.masks if turns is not None and self.state.history else None
        if self.recipe.recalibrate and not self.state.history:
            self.calibration.recalibrate()
        context = self.context(step)
        with torch.no_grad():
            for key, part in self.recipe.parts_with("before_step"):
                part.before_step(context.told(key))
        context = self.scored(context, turns)
        kept = self.scorer.select(context)
        self.keep(kept.replace(of_first(kept)) if together() and processes() > 1 else kept)
        # before the masks act: a repair looks at the values that go
        if self.recipe.repair.changes:
            self.recipe.repair(context.told("repair", kept_after=self.state.kept, masks=self.state.masks))
        self.state.masks.apply(self.inner, unless_in=acted)
        restarted = False
        if self.recipe.retrain.changes and self.retrains(step):
            # until then the trained values go on being ranked by
            restarted = self.recipe.retrain.restart(
                context.told("retrain", masks=self.state.masks),
                self.state.checkpoints,
                derive(self.trainings.seed, "step", step.number),
            )
            self.state.masks.apply(self.inner)
        if masked is not None:
            masked.update(self.state.masks)
        # the loop of a user who attached trains
        if self.calibration.norms and (masked is None or self.recipe.recalibrate):
            self.calibration.recalibrate()
        return restarted

    def scored(self, context: StepContext, turns: TurnStatistics | None = None) -> StepContext:
        """The context of a step with what is measured, and with the scores; `turns` as of `remove`."""
        context = self.scorer.measured(context, turns)
        return replace(context, scores=self.scorer.scores(context))

    def check_agreement(self) -> None:
        """Refuse weights that differ between the processes, of which each would choose others.

        Raises:
            PrunekitError: on all processes, naming the first.
        """
        if not together():
            return
        values = {name: self.inner.get_parameter(name) for name in self.plan.elements.parameters}
        check_same(values, "load the same weights everywhere, and train in DistributedDataParallel")

    def quantize(self, step: Step, report: Report | None) -> Counted:
        """Few values for the weights that the last step and its retraining have left."""
        part = self.recipe.quantize
        context = self.context(step)
        if part.measures and (names := part.filled(self.inner)):
            context = replace(context, statistics=self.scorer.collected(context, names, part.measures))
        self.trainings.quantize(context, report)
        if not part.plans and self.calibration.norms:
            self.calibration.recalibrate()
        if isinstance(part, LayerQuantizer) and part.zero_dead:
            self._zero_dead()
        part.round_rest(self.inner)
        if self.recipe.granularity.counts == "weights":  # those that have become zero are removed, too
            values = {name: self.inner.get_parameter(name).detach() for name in self.state.kept}
            self.keep(Masks({name: kept & (values[name] != 0) for name, kept in self.state.kept.items()}))
        return Counted.of(self.inner, part.targets(self.inner))

    def _zero_dead(self) -> None:
        """Zero the units that died, whose constants biases take while they are not rounded yet.

        They stay what they are where nothing can be told of the network.
        """
        inputs = self.example_inputs
        if inputs is None and self.trainings.data is not None:
            inputs = two_examples(self.trainings.model, self.trainings.data).inputs
        if inputs is not None:
            try:
                graph.zero_dead(self.inner, inputs, masks=self.state.masks)
            except (InputError, ModelError, graph.VerificationError) as error:
                log.info("dead units stay as they are: %s", error)

    def record(
        self,
        step: Step,
        started: float,
        train_loss: float | None,
        measured: Mapping[str, float],
        counted: Counted | None = None,
    ) -> Record:
        """What the step achieved, which the history has from now on.

        Args:
            step: which it is.
            started: when, as `time.perf_counter` tells it.
            train_loss: of its retraining.
            measured: by the user's function.
            counted: the values that are left, where few were made of them.
        """
        if not isinstance(measured, Mapping):
            raise InputError(
                f"evaluate must give values by names, as {{'accuracy': 0.9}}, not {shown(measured)}"
            )
        layers = {name: self.state.kept.count(name) for name in self.state.kept}
        record = Record(
            step=step.number,
            sparsity=self.state.kept.sparsity,
            kept=sum(layers.values()),
            total=self.state.kept.total,
            layers=layers,
            compression_ratio=self._compression_ratio(),
            train_loss=train_loss,
            seconds=time.perf_counter() - started,
            measured={name: _plain(value) for name, value in measured.items()},
            levels={} if counted is None else counted.levels,
            bits=None if counted is None else counted.bits,
            **self._budgeted(),
        )
        self.state.history.append(record)
        return record

    def _budgeted(self) -> dict[str, float]:
        """What was asked of the step and reached, where the allocation is a budget."""
        if not self.recipe.allocation.of_cost:
            return {}
        return {name: float(self.state.parts["allocation"][name]) for name in (ASKED, REACHED)}

    def _compression_ratio(self) -> float:
        if self.recipe.granularity.counts == "weights":
            return self.state.kept.compression_ratio
        whole = count_parameters(self.inner)
        left = whole - (self.state.masks.total - self.state.masks.kept)
        return whole / left if left else math.inf


def _plain(value: Any) -> Any:
    """A figure as a number of Python: those of NumPy and torch do not go into every checkpoint."""
    return value.item() if hasattr(value, "item") else value
