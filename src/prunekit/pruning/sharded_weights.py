"""One step of a pruning of weights that are shared out over processes: DTensors, as after `fully_shard`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.distributed import failing_together, local_part
from prunekit.distributed.sharded_ranking import check_placements, count_true, like_shards, lowest_of_all
from prunekit.errors import InputError, ModelError
from prunekit.masks import Masks
from prunekit.parts.allocation import Allocation, Global, PerLayer
from prunekit.parts.context import StepContext
from prunekit.parts.scores import Magnitude
from prunekit.recipe import Recipe
from prunekit.targets import find_targets


def prune_sharded(model: nn.Module, recipe: Recipe, *, scores: Mapping[str, Tensor] | None = None) -> Masks:
    """Prune a network whose weights are shared out over processes, in place; nothing is gathered.

    The masks are those that `prune` finds in one process: the exact number, by magnitudes that compete over
    all layers or within each, ties by position. All processes call it together. For training under the masks
    give them to `prunekit.masked_optimizer.MaskedOptimizer`; for a further step call it again with a higher
    sparsity, what is zero goes first.

    Args:
        model: after `torch.distributed.fsdp.fully_shard`, or with the DTensors of a tensor-parallel plan;
            without other wrappers.
        recipe: one step, of weights, with the score `magnitude`, the allocation `global` or `per_layer`, and
            no more parts.
        scores: in place of the recipe's score, one number per weight by the parameters' names, float32 or
            float64, shared out as the weights are, such as `(weight * weight.grad).abs()`.

    Returns:
        The masks, DTensors with the placements of their weights; the weights are zero where they remove.

    Raises:
        InputError: for a recipe with other parts, tensors that are placed in another way, or scores that do
            not fit the weights.
        ModelError: where nothing is to be pruned, or weights or scores are not finite.
    """
    with failing_together(), torch.no_grad():
        sparsity = _sparsity_of(recipe)
        targets = find_targets(model, recipe.targets, recipe.ignore, sharded=True)
        recipe.allocation.check(targets, sparsity)
        weights = {target.name: model.get_parameter(target.name).detach() for target in targets}
        check_placements(weights)
        _check_finite(weights, "weights")
        given = _magnitudes(recipe, weights) if scores is None else _checked_scores(scores, weights)
        masks = Masks(_kept(_removed_first(given, weights), recipe.allocation, sparsity))
        masks.apply(model)
        return masks


def _sparsity_of(recipe: Recipe) -> float:
    """The sparsity of a recipe's one step.

    Raises:
        InputError: if it asks for more than one process can do with its part of the weights.
    """
    own = {key: getattr(recipe, key) for key in ("score", "allocation", "schedule", "targets", "ignore")}
    plain = recipe.score == Magnitude() and recipe.allocation in (
        Global(floor=recipe.allocation.floor),
        PerLayer(floor=recipe.allocation.floor),
    )
    sparsities = recipe.schedule.sparsities()
    if not plain or recipe != Recipe(**own) or len(sparsities) != 1 or sparsities[0] is None:
        raise InputError(
            "weights that are shared out over processes are pruned in one step of the score 'magnitude' and "
            "the allocation 'global' or 'per_layer' (with output_rate 1), and no other part: leave the rest "
            "of the recipe, or prune before fully_shard"
        )
    return sparsities[0]


def _magnitudes(recipe: Recipe, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = recipe.score(StepContext(weights={name: local_part(each) for name, each in weights.items()}))
    return {name: like_shards(_ranked_type(found[name]), each) for name, each in weights.items()}


def _ranked_type(scores: Tensor) -> Tensor:
    return scores if scores.dtype == torch.float64 else scores.float()


def _checked_scores(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, weight in weights.items():
        given = scores.get(name)
        if given is None or given.shape != weight.shape or _placed(given) != _placed(weight):
            raise InputError(f"there are no scores of the shape and the placements of {name}")
    found = {name: scores[name].detach() for name in weights}
    _check_finite(found, "scores")
    return found


def _placed(tensor: Tensor) -> tuple[object, ...] | None:
    return getattr(tensor, "placements", None)


def _check_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    flags = {name: like_shards(local_part(each).isfinite(), each) for name, each in tensors.items()}
    for name, count in count_true(flags).items():
        if count < tensors[name].numel():
            raise ModelError(
                f"the {what} of {name} are NaN or infinite in {tensors[name].numel() - count} places"
            )


def _removed_first(scores: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Minus infinity for zeros between other weights, so that pruning twice removes no more than once."""
    other = {name: like_shards(local_part(each) != 0, each) for name, each in weights.items()}
    counts = count_true(other)
    return {
        name: like_shards(local_part(each).masked_fill(~local_part(other[name]), -torch.inf), each)
        if counts[name]
        else each
        for name, each in scores.items()
    }


def _kept(scores: Mapping[str, Tensor], allocation: Allocation, sparsity: float) -> dict[str, Tensor]:
    """The masks: within each layer, or over all of them, with the best of each layer out of reach."""
    if isinstance(allocation, PerLayer):
        removed = {
            name: lowest_of_all({name: each}, round(sparsity * each.numel()))[name]
            for name, each in scores.items()
        }
    else:
        ranked = {name: _within_reach(name, each, allocation) for name, each in scores.items()}
        removed = lowest_of_all(ranked, round(sparsity * sum(each.numel() for each in scores.values())))
    return {name: like_shards(~local_part(each), each) for name, each in removed.items()}


def _within_reach(name: str, scores: Tensor, allocation: Allocation) -> Tensor:
    """Infinity for as many of the best of a layer as its floor is."""
    if allocation.floor == 0:
        return scores
    reach = lowest_of_all({name: scores}, allocation.capacity(scores.numel()))[name]
    return like_shards(local_part(scores).masked_fill(~local_part(reach), torch.inf), scores)
