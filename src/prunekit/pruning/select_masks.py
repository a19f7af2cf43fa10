"""The masks after a step: the allocation says how many elements of each layer go, the selection which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from prunekit.graph.capture import Inputs
from prunekit.masks import Masks
from prunekit.parts.context import CostModel, StepContext
from prunekit.recipe import Plan, Recipe
from prunekit.seeds import generator


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
        recipe: with allocation, selection and shape.
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
            count = max(recipe.shape.rounded(scores[name].numel(), amounts[name]), pruned[name])
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
