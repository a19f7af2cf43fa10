"""A step of a pruning: statistics of the data, scores from them, and the masks that follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.batches import Inputs
from prunekit.errors import DataError, InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.context import CostModel, StepContext
from prunekit.parts.scores import Random, Scores
from prunekit.pruning.calibration import Calibration
from prunekit.pruning.state import State, asked_again
from prunekit.recipe import Plan, Recipe
from prunekit.seeds import generator
from prunekit.statistics import Found, StatContext, Statistic, collect


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
    """

    recipe: Recipe
    plan: Plan
    calibration: Calibration
    seed: int
    example_inputs: Inputs | None
    state: State

    @property
    def competes(self) -> bool:
        """Whether what is removed competes again by its score; with a `grow` it comes back in exchange."""
        return self.recipe.regrow and self.recipe.grow is None

    def measure(self, context: StepContext) -> Found:
        """The statistics that score, selection and repair ask for at a step."""
        state, recipe = self.state, self.recipe
        if state.measured is not None:
            return state.measured
        names = context.step.layers if self.plan.layer_by_layer else list(context.weights)
        # what is ranked needs no second look
        needs = recipe.needs if state.ranking is None else asked_again(recipe)
        found = self.collected(context, names, needs) if needs else {}
        if recipe.statistics == "once":
            state.measured = {statistic: found[statistic] for statistic in asked_again(recipe)}
        return found

    def collected(self, context: StepContext, names: Sequence[str], needs: Sequence[Statistic]) -> Found:
        """Statistics of the parameters of these names, on the sample of the step."""
        sample = self.calibration
        subject = StatContext(context.model, names, kept=context.kept, coupled=context.coupled)
        wrong: list[DataError] = []
        draw = 0 if self.recipe.grow is None else context.step.number
        judged = any(need.needs_loss for need in needs)
        batches = sample.batches(draw) if judged else sample.watched(wrong, draw)
        found = collect(subject, batches, needs, task=sample.task)
        if wrong:
            raise wrong[0]
        return found

    def scores(self, context: StepContext) -> Scores:
        """A score for each element, the least to go first.

        Raises:
            InputError: where the score gives none, or of another shape.
            ModelError: where one is NaN.
        """
        weights, kept = context.weights, context.kept
        if self.plan.layer_by_layer and self.recipe.score.needs:
            weights = {name: weights[name] for name in context.step.layers}
        scores = self.state.ranking
        if scores is None:
            random = generator(self.seed, "score", context.step.number)
            scores = self._ranked(context.told("score", weights=weights, generator=random))
        if self.recipe.rank == "once":
            self.state.ranking = scores
        if self.recipe.grow is not None:
            # what comes back does so by another score; a weight that has just done so may still be zero
            scores = {name: score.masked_fill(~kept[name], float("-inf")) for name, score in scores.items()}
        elif not self.competes:
            # what is gone goes first: what was removed stays removed, and pruning twice removes no more
            gone = {name: self.plan.elements.gone(name, kept) for name in scores}
            scores = {name: score.masked_fill(gone[name], float("-inf")) for name, score in scores.items()}
        # layers whose turn is another time only count by their size, which takes no memory
        return {
            name: scores[name] if name in scores else torch.zeros((), device=each.device).expand(each.shape)
            for name, each in kept.items()
        }

    def _ranked(self, context: StepContext) -> Scores:
        grow, score = self.recipe.grow, self.recipe.score
        if grow is not None and grow.start == "random" and context.step.round == 1:
            score = Random()
        with torch.no_grad():
            scores = self.recipe.granularity.gather(score(context), self.plan.elements)
        # with an order, some scores see a part of the layers only
        wanted = context.weights if self.plan.layer_by_layer else context.kept
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
            name: int((~each).sum()) if name in frozen or not self.competes else 0
            for name, each in kept.items()
        }
        shielded = {**scores, **{name: elements.shielded(name, scores[name]) for name in step.layers}}

        @torch.no_grad()
        def keeping(amounts: Mapping[str, int]) -> Masks:
            masks = {}
            for name in step.layers:
                random = generator(self.seed, "selection", step.number, name)
                told = context.told("selection", scores=shielded, generator=random)
                count = max(recipe.granularity.rounded(scores[name].numel(), amounts[name]), pruned[name])
                masks[name] = recipe.selection(told, name, count)
            return kept.replace(masks)

        told = context.told(
            "allocation",
            loss_with=None if self.calibration.data is None else self.calibration.loss_with,
            pruned=pruned,
            frozen=frozen,
            min_kept={target.name: target.least for target in elements.targets},
            cost_model=CostModel(elements, keeping, self.example_inputs)
            if recipe.allocation.of_figure
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
