"""A step of a pruning: statistics of the data, scores from them, and the masks that follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph.capture import Inputs
from prunekit.masks import Masks
from prunekit.parts.context import CostModel, StepContext
from prunekit.parts.scores import Scores
from prunekit.pruning.calibration import Calibration
from prunekit.recipe import Plan, Recipe
from prunekit.seeds import generator
from prunekit.statistics import Found, StatContext, Statistic, collect


class Scorer:
    """Ranks what is left at every step, or once and for all if the recipe says so.

    Args:
        recipe: whose score ranks.
        plan: its steps, and what is removed.
        calibration: the data that is looked at.
        seed: of random scores.
    """

    def __init__(self, recipe: Recipe, plan: Plan, calibration: Calibration, seed: int) -> None:
        self._recipe, self._plan = recipe, plan
        self._calibration, self._seed = calibration, seed
        self._ranking: Scores | None = None
        self._measured: Found | None = None

    def measure(self, context: StepContext) -> Found:
        """The statistics that score, selection and repair ask for at a step."""
        if self._measured is not None:
            return self._measured
        names = context.step.layers if self._recipe.layer_by_layer else list(context.weights)
        subject = StatContext(context.model, names, context.chain, context.kept, coupled=context.coupled)
        needs, sample, wrong = self._needs(), self._calibration, list[DataError]()
        found: Found = {}
        if needs:
            batches = sample.batches() if any(need.needs_loss for need in needs) else sample.watched(wrong)
            found = collect(subject, batches, needs, loss=sample.loss)
        if wrong:
            raise wrong[0]
        if self._recipe.statistics == "once":
            self._measured = {statistic: found[statistic] for statistic in self._again}
        return found

    def _needs(self) -> tuple[Statistic, ...]:
        """What is asked of the data at this step: a ranking that is taken once needs no second look."""
        return self._recipe.needs if self._ranking is None else self._again

    @property
    def _again(self) -> tuple[Statistic, ...]:
        """What is asked of the data however elements are ranked."""
        parts = self._recipe.parts.items()
        return tuple(need for key, part in parts if key != "score" for need in part.needs)

    def scores(self, context: StepContext) -> Scores:
        """A score for each element, the least to go first.

        Raises:
            InputError: where the score gives none, or of another shape.
            ModelError: where one is NaN.
        """
        weights, kept = context.weights, context.kept
        if self._recipe.layer_by_layer and self._recipe.score.needs:
            weights = {name: weights[name] for name in context.step.layers}
        scores = self._ranking
        if scores is None:
            random = generator(self._seed, "score", context.step.number)
            scores = self._ranked(context.told("score", weights=weights, generator=random))
        if self._recipe.rank == "once":
            self._ranking = scores
        if not self._recipe.regrow:
            # what is zero goes first: what was removed stays removed, and pruning twice removes no more
            gone = {name: self._plan.elements.gone(name, weights.get(name), kept) for name in scores}
            scores = {name: score.masked_fill(gone[name], float("-inf")) for name, score in scores.items()}
        # layers whose turn is another time only count by their size, which takes no memory
        return {
            name: scores[name] if name in scores else torch.zeros((), device=each.device).expand(each.shape)
            for name, each in kept.items()
        }

    def _ranked(self, context: StepContext) -> Scores:
        with torch.no_grad():
            scores = self._recipe.granularity.gather(self._recipe.score(context), self._plan.elements)
        # with an order, some scores see a part of the layers only
        wanted = context.weights if self._recipe.layer_by_layer else context.kept
        for name in wanted:
            if name not in scores or scores[name].shape != context.kept[name].shape:
                raise InputError(
                    f"the score {self._recipe.score.name!r} gave no scores of the shape of {name}"
                )
            if bool(torch.isnan(scores[name]).any()):
                raise ModelError(f"the score {self._recipe.score.name!r} of {name} is NaN")
        return {name: scores[name] for name in wanted}

    def state_dict(self) -> dict[str, Any]:
        """What was taken once and for all, as plain values and tensors."""
        return {
            "ranking": None if self._ranking is None else dict(self._ranking),
            "measured": None
            if self._measured is None
            else {str(statistic): dict(values) for statistic, values in self._measured.items()},
        }

    @property
    def keys(self) -> tuple[str, ...]:
        """What the statistics that are taken once are called in a state."""
        return tuple(str(request) for request in self._again)

    def resume(self, ranking: Scores | None, measured: Mapping[str, Mapping[str, Tensor]] | None) -> None:
        """Go on from there."""
        self._ranking = ranking
        self._measured = None
        if measured is not None:
            self._measured = {request: measured[str(request)] for request in self._again}


def select_masks(
    context: StepContext,
    recipe: Recipe,
    plan: Plan,
    *,
    seed: int,
    loss_with: Callable[[Masks], float] | None,
    example_inputs: Inputs | None,
) -> Masks:
    """What is kept after a step: the allocation says how many of each layer, the selection which.

    Args:
        context: of the step, with the scores of all elements.
        recipe: with allocation, selection and granularity.
        plan: its steps, and what is removed.
        seed: of random selections.
        loss_with: the loss if only some elements were kept, where there are data.
        example_inputs: on which the network can be run.
    """
    elements, step, kept, scores = plan.elements, context.step, context.kept, context.scores
    frozen = frozenset(
        name
        for earlier in plan.steps[: step.number - 1]
        if earlier.round == step.round
        for name in earlier.layers
    )
    pruned = {
        name: int((~each).sum()) if name in frozen or not recipe.regrow else 0 for name, each in kept.items()
    }
    shielded = {**scores, **{name: elements.shielded(name, scores[name]) for name in step.layers}}

    @torch.no_grad()
    def keeping(amounts: Mapping[str, int]) -> Masks:
        masks = {}
        for name in step.layers:
            random = generator(seed, "selection", step.number, name)
            told = context.told("selection", scores=shielded, generator=random)
            count = max(recipe.granularity.rounded(scores[name].numel(), amounts[name]), pruned[name])
            masks[name] = recipe.selection(told, name, count)
        return kept.replace(masks)

    cost_model = CostModel(
        elements.all_kept(context.model), keeping, partial(elements.smaller, context.model), example_inputs
    )
    told = context.told(
        "allocation",
        loss_with=loss_with,
        pruned=pruned,
        frozen=frozen,
        min_kept={target.name: target.least for target in plan.targets},
        cost_model=cost_model if recipe.allocation.of_figure else None,
    )
    return keeping(recipe.allocation.amounts(told))
