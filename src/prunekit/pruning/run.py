"""`prune()`: all steps of a recipe, one after the other."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.graph.capture import Inputs
from prunekit.history import Pruned
from prunekit.losses import Loss
from prunekit.parts.retrain import Checkpoints
from prunekit.pruning.session import Evaluate, Session
from prunekit.recipe import Recipe
from prunekit.training import Report


def prune(
    model: nn.Module,
    recipe: Recipe,
    data: Any = None,
    *,
    seed: int = 0,
    loss: Loss | None = None,
    checkpoints: Checkpoints | None = None,
    validation: Any = None,
    evaluate: Evaluate | None = None,
    report: Report | None = None,
    example_inputs: Inputs | None = None,
) -> Pruned:
    """Prune a network in place, following a recipe. To keep the dense one, pass `copy.deepcopy(model)`.

    Args:
        model: a trained network.
        recipe: what to do.
        data: training examples, if the recipe scores by data or retrains: a pair of tensors
            (inputs, targets), a dataset of `prunekit.data`, or a loader of such pairs.
        seed: of everything random.
        loss: (outputs, targets) -> mean loss, for scores; by default cross-entropy or squared error.
        checkpoints: states of the dense training by step, for recipes that rewind.
        validation: examples of the same kinds as `data`, on which a recipe's `stop` measures the error; by
            default the recipe's calibration sample of `data`.
        evaluate: measures the network after each step, for the history.
        report: told how far a retraining is.
        example_inputs: what the network can be run on, for recipes that find out so what is coupled in it; by
            default the first two of the data.

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
        checkpoints=checkpoints,
        validation=validation,
        example_inputs=example_inputs,
    )
    with session.undoing(steps=len(session.plan.steps), evaluated=evaluate is not None):
        for _ in session.run(evaluate=evaluate, report=report):
            pass
    return session.result()
