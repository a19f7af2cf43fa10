"""The controls that a method is compared with: the same sizes at random, and trained from new values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prunekit.parts.allocation import Recorded, Zeros
from prunekit.parts.granularity import Unit
from prunekit.parts.repair import NoRepair
from prunekit.parts.retrain import Reinitialize
from prunekit.parts.schedule import AllocationDecides
from prunekit.parts.scores import Magnitude, OutgoingNorm, Random
from prunekit.parts.selection import Lowest
from prunekit.parts.stopping import NoStop
from prunekit.recipe import Recipe
from prunekit.training import Training

__all__ = ["random_control", "scratch_control"]


def random_control(
    recipe: Recipe, names: Sequence[str] = (), removed: Mapping[int, Mapping[str, int]] | None = None
) -> Recipe:
    """A recipe with another one's granularity, order, repair and retraining that chooses at random.

    A random choice over the whole network takes the same share of every layer; a method that spares small
    layers beats it by that alone. This one takes of every layer what the method takes, so that what is left
    between them is the choice within layers. A training that the method's score asks for before the first
    removal is not done; one that itself brings to zero what goes is done without what acts in it. The control
    has no stop of its own, and ends with the step with which the method has ended.

    Args:
        recipe: of the method.
        names: of the layers (or groups of units).
        removed: by the numbers of the steps that the method has taken, in order, how many of each layer are
            gone; of others than the last of their round only the very last matters. None for the same
            allocation and schedule.
    """
    changed: dict[str, Any] = {
        "score": Random(),
        "selection": Lowest(),
        "stop": NoStop(),
        # statistics that are taken once serve one ranking
        "rank": recipe.rank if recipe.statistics == "once" else "every_step",
    }
    if isinstance(recipe.allocation, Zeros) and recipe.warm_up is not None:
        changed["warm_up"] = recipe.warm_up.model_copy(update={"regularize": ()})
    if removed is not None and not recipe.granularity.even:  # a pattern takes the same of every layer
        layers = 1 if recipe.order == "all" else len(names)
        last = max(removed, default=0)
        rounds = [dict(each) for step, each in removed.items() if step % layers == 0 or step == last]
        turns = last % layers or (None if removed else 0)
        changed["allocation"] = Recorded(removed=tuple(rounds or [dict.fromkeys(names, 0)]))
        changed["schedule"] = AllocationDecides(steps=max(len(rounds), 1), turns=turns)
    return Recipe(**{**vars(recipe), **changed})


def scratch_control(
    recipe: Recipe, training: Training, names: Sequence[str] = (), removed: Mapping[str, int] | None = None
) -> Recipe:
    """A recipe that leaves a structured one's final shape, trained from new random values.

    The smallest units or filter shapes go, all at once: those that are zero in the network that it is given,
    if that has the zeros of what the method has pruned.

    Args:
        recipe: of the method, which removes units or filter shapes.
        training: of what is left.
        names: of the groups of units.
        removed: how many each of them has lost in the end. None for the same allocation and schedule.
    """
    alone = recipe.model_copy(
        update={
            "order": "all",
            "repair": NoRepair(),
            "warm_up": None,
            "retrain": Reinitialize(training=training, fan_in="kept"),
            "teacher": recipe.teacher if recipe.learns_from_given else None,
            "rank": "every_step",
            "statistics": "every_step",
            "retrain_every": 1,
            "recalibrate": None,
            "regrow": False,
            "grow": None,
        }
    )
    if removed is None:
        return random_control(alone, names)
    control = random_control(alone, names, {1: removed})
    reads = isinstance(recipe.granularity, Unit) and recipe.granularity.inputs
    # input features have no incoming weights
    return Recipe(**{**vars(control), "score": OutgoingNorm() if reads else Magnitude()})
