"""Which elements go at a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import nn

from prunekit.graph.capture import Inputs
from prunekit.masks import Masks
from prunekit.parts.allocation import Remains, Situation
from prunekit.parts.scores import Scores
from prunekit.parts.selection import Choice
from prunekit.recipe import Plan, Recipe, Step
from prunekit.seeds import generator
from prunekit.statistics import Found
from prunekit.targets import owner_of, unwrap


def chosen(
    model: nn.Module,
    recipe: Recipe,
    plan: Plan,
    step: Step,
    kept: Masks,
    scores: Scores,
    found: Found,
    *,
    seed: int,
    loss_with: Callable[[Masks], float] | None,
    example_inputs: Inputs | None,
) -> Masks:
    """What is kept after a step: the allocation says how many of each layer, the selection which.

    Args:
        model: the network.
        recipe: with allocation, selection and shape.
        plan: its steps, and what is removed.
        step: the step.
        kept: before it.
        scores: of all elements.
        found: statistics that the selection asks for.
        seed: of selections by lot.
        loss_with: the loss if only some elements were kept, where there are data.
        example_inputs: on which the network can be run.
    """
    elements = plan.elements
    settled = frozenset(
        name
        for earlier in plan.steps[: step.number - 1]
        if earlier.round == step.round
        for name in earlier.layers
    )
    lost = {
        name: int((~each).sum()) if name in settled or not recipe.regrow else 0 for name, each in kept.items()
    }
    weights = {name: unwrap(model).get_parameter(name).detach() for name in elements.parameters}
    single = recipe.shape.counts == "weights"

    @torch.no_grad()
    def keeping(amounts: Mapping[str, int]) -> Masks:
        return kept.replace(
            {
                name: recipe.selection(
                    Choice(
                        name,
                        elements.shielded(name, scores[name]),
                        max(recipe.shape.rounded(scores[name].numel(), amounts[name]), lost[name]),
                        recipe.shape,
                        weights[name] if single else None,
                        owner_of(model, name) if single else None,
                        found,
                        generator(seed, "selection", step.number, name),
                    )
                )
                for name in step.layers
            }
        )

    situation = Situation(
        sparsity=step.sparsity,
        previous=step.previous,
        round=step.round,
        rounds=step.rounds,
        scores=scores,
        weights=weights,
        masks=kept,
        loss_with=loss_with,
        lost=lost,
        settled=settled,
        least={target.name: target.least for target in plan.targets},
        remains=Remains(
            elements.all_kept(model),
            keeping,
            partial(elements.smaller, model),
            example_inputs,
        )
        if recipe.allocation.of_figure
        else None,
    )
    return keeping(recipe.allocation.amounts(situation))
