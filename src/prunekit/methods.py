"""The known methods, each one expression over the parts, with its paper.

A method is a function from a few numbers to a `Recipe`. Those that retrain take `epochs` per step and, as
`training`, any other setting of `Training`. To change anything else about one, write the recipe.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from prunekit.allocation import ERK, Nothing, PerLayer, Sensitivity, Threshold
from prunekit.errors import InputError
from prunekit.recipe import Recipe
from prunekit.retrain import FineTune, Reinitialize, Rewind
from prunekit.schedule import Cubic, Geometric, Linear, OneShot, Rounds
from prunekit.scores import (
    N2PS,
    Activation,
    Gradient,
    Magnitude,
    Oracle,
    Random,
    Skeletonization,
    UnitTaylor,
    WeightGradient,
)
from prunekit.shapes import NM, Unit
from prunekit.statistics.units import Error
from prunekit.training import Training

TrainingLike = Training | Mapping[str, Any] | None
"""Settings of the retraining beside its epochs: a mapping, or a whole `Training` instead of them."""


def _training(epochs: float, training: TrainingLike) -> Training:
    if isinstance(training, Training):
        return training
    given = dict(training or {})
    return Training.parse(given if "iterations" in given else {"epochs": epochs, **given})


def random(sparsity: float = 0.9) -> Recipe:
    """Weights drawn by lot, in one step: the control of every comparison."""
    return Recipe(score=Random(), schedule=OneShot(sparsity=sparsity))


def magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of all layers, in one step.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(score=Magnitude(), schedule=OneShot(sparsity=sparsity))


def layer_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, the same fraction everywhere, in one step.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(score=Magnitude(), allocation=PerLayer(), schedule=OneShot(sparsity=sparsity))


def threshold_magnitude(
    q: float = 0.5, rounds: int = 1, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Every |w| below q standard deviations of its layer; prune, retrain, repeat.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(
        score=Magnitude(),
        allocation=Threshold(q=q),
        schedule=Rounds(steps=rounds),
        retrain=FineTune(training=_training(epochs, training)),
    )


def iterative_magnitude(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The smallest |w|, the same share of what is left in every step, retrained after each.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(
        score=Magnitude(),
        schedule=Geometric(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=_training(epochs, training)),
    )


def gradual_magnitude(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Automated gradual pruning: the smallest |w| by a cubic schedule while training goes on.

    Paper: Zhu, Gupta 2017, arXiv 1710.01878
    """
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(),
        schedule=Cubic(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=_training(epochs, training)),
    )


def erk_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, narrow layers kept denser by the Erdős-Rényi-Kernel rule.

    Paper: Evci et al. 2020, arXiv 1911.11134
    """
    return Recipe(score=Magnitude(), allocation=ERK(), schedule=OneShot(sparsity=sparsity))


def sensitivity_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, every layer as far as its measured loss allows.

    Paper: Han et al. 2015, arXiv 1506.02626, section 5
    """
    return Recipe(score=Magnitude(), allocation=Sensitivity(), schedule=OneShot(sparsity=sparsity))


def n_m(n: int = 2, m: int = 4) -> Recipe:
    """N:M pattern by magnitude: n of every m consecutive inputs are kept.

    Paper: Mishra et al. 2021, arXiv 2104.08378
    """
    return Recipe(
        score=Magnitude(),
        shape=NM(n=n, m=m),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=1 - n / m),
    )


def gradient(sparsity: float = 0.9) -> Recipe:
    """The smallest |dL/dw|, in one step.

    Paper: Blalock et al. 2020, arXiv 2003.03033, as a baseline
    """
    return Recipe(score=Gradient(), schedule=OneShot(sparsity=sparsity))


def snip(sparsity: float = 0.9) -> Recipe:
    """The smallest |w dL/dw|, in one step; meant for a network before training.

    Paper: Lee, Ajanthan, Torr 2019, arXiv 1810.02340
    """
    return Recipe(score=WeightGradient(), schedule=OneShot(sparsity=sparsity))


def lottery_ticket(
    rate: float = 0.2, rounds: int = 10, step: int = 0, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """Train, remove the smallest |w| of each layer, put survivors back to their initial values, repeat.

    The output layer is pruned at half the rate. With `step` > 0 the values are those of that training step
    (late rewinding).

    Paper: Frankle, Carbin 2019, arXiv 1803.03635
    """
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(output_rate=0.5),
        schedule=Geometric(rate=rate, steps=rounds),
        retrain=Rewind(step=step, training=_training(epochs, training)),
    )


def lottery_ticket_linear(
    sparsity: float = 0.9, cycles: int = 10, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """The lottery ticket with equal parts of the original count per cycle: 9, 18, ... 90 %.

    Paper: Frankle, Carbin 2019, arXiv 1803.03635, in a variant with linear steps
    """
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(),
        schedule=Linear(sparsity=sparsity, steps=cycles),
        retrain=Rewind(training=_training(epochs, training)),
    )


def random_ticket(
    rate: float = 0.2, rounds: int = 10, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """The control of the lottery ticket: the same masks by magnitude, but survivors get new random values.

    Paper: Frankle, Carbin 2019, arXiv 1803.03635
    """
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(output_rate=0.5),
        schedule=Geometric(rate=rate, steps=rounds),
        retrain=Reinitialize(training=_training(epochs, training)),
    )


def unpruned(rounds: int = 10, epochs: float = 5, training: TrainingLike = None) -> Recipe:
    """Nothing is removed, but the network is trained as long as the others: the second control."""
    return Recipe(
        allocation=Nothing(),
        schedule=Rounds(steps=rounds),
        retrain=FineTune(training=_training(epochs, training)),
    )


def oracle_units(sparsity: float = 0.5, steps: int = 10, error: Error = "squared_error") -> Recipe:
    """The units whose switching off raises the true error least, ranked again in every step.

    Paper: Wolfe, Sharma, Raj 2017, arXiv 1701.04465
    """
    return Recipe(score=Oracle(error=error), shape=Unit(), schedule=Linear(sparsity=sparsity, steps=steps))


def taylor_units(
    sparsity: float = 0.5, steps: int = 10, order: Literal[1, 2] = 2, error: Error = "squared_error"
) -> Recipe:
    """The units whose switching off a Taylor series in their gain predicts to cost least.

    Paper: Wolfe, Sharma, Raj 2017, arXiv 1701.04465
    """
    return Recipe(
        score=UnitTaylor(order=order, error=error),
        shape=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
    )


def skeletonization(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The units of least relevance, the derivative of the linear error by their gain, with brief retraining.

    Paper: Mozer, Smolensky 1989, NIPS 1
    """
    return Recipe(
        score=Skeletonization(),
        shape=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=_training(epochs, training)),
    )


def n2ps_units(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The units, input features among them, of least significance for the next layer, with retraining.

    The paper stops where the accuracy falls and rolls back; here the schedule says how far it goes.

    Paper: Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7
    """
    return Recipe(
        score=N2PS(),
        shape=Unit(inputs=True),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=_training(epochs, training)),
    )


def apoz_units(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The units with the largest share of zeros behind their activation, with retraining; meant for ReLU.

    Paper: Hu et al. 2016, arXiv 1607.03250
    """
    return Recipe(
        score=Activation(what="nonzeros"),
        shape=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=_training(epochs, training)),
    )


def filter_norm(sparsity: float = 0.5, epochs: float = 20, training: TrainingLike = None) -> Recipe:
    """The filters of the smallest L1 norm, the same fraction of every layer in one step, then retraining.

    Paper: Li et al. 2016, arXiv 1608.08710
    """
    return Recipe(
        score=Magnitude(),
        shape=Unit(),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=_training(epochs, training)),
    )


def random_units(sparsity: float = 0.5) -> Recipe:
    """Units drawn by lot, in one step: the control of every comparison of units."""
    return Recipe(score=Random(), shape=Unit(), schedule=OneShot(sparsity=sparsity))


METHODS: Mapping[str, Callable[..., Recipe]] = {
    method.__name__: method
    for method in (
        random, magnitude, layer_magnitude, threshold_magnitude, iterative_magnitude, gradual_magnitude,
        erk_magnitude, sensitivity_magnitude, n_m, gradient, snip, lottery_ticket, lottery_ticket_linear,
        random_ticket, unpruned, oracle_units, taylor_units, skeletonization, n2ps_units, apoz_units,
        filter_norm, random_units,
    )
}  # fmt: skip
"""Every named method."""


@dataclass(frozen=True)
class MethodInfo:
    """A row of the table of methods.

    Attributes:
        name: as in Python, YAML and on the command line.
        summary: one sentence.
        paper: the source; empty for controls.
        shape: what goes together.
        needs: what the method needs besides the weights: calibration data, retraining, initial values.
        settings: its settings with their defaults.
    """

    name: str
    summary: str
    paper: str
    shape: str
    needs: tuple[str, ...]
    settings: Mapping[str, Any]


def recipe(name: str, **settings: Any) -> Recipe:
    """The recipe of a named method.

    Raises:
        InputError: if there is no such method, or it has no such setting; it names those that exist.
    """
    if name not in METHODS:
        raise InputError(f"there is no method {name!r}; methods are: {', '.join(METHODS)}")
    allowed = inspect.signature(METHODS[name]).parameters
    for key in settings:
        if key not in allowed:
            raise InputError(f"method {name}: unknown key {key!r}; allowed keys are: {', '.join(allowed)}")
    try:
        return METHODS[name](**settings)
    except TypeError as error:  # a text where the method calculates with a number
        raise InputError(f"method {name}: {error}") from None


def describe(name: str) -> MethodInfo:
    """What there is to know of a method, read from its docstring and its recipe."""
    chosen = recipe(name)
    text = inspect.cleandoc(METHODS[name].__doc__ or "")
    paper = text.partition("Paper:")[2].strip()
    needs = [
        what
        for what, needed in (
            ("data", chosen.needs_data),
            ("retraining", chosen.retrain.plan is not None),
            ("initial values", chosen.retrain.checkpoint is not None),
        )
        if needed
    ]
    defaults = {key: value.default for key, value in inspect.signature(METHODS[name]).parameters.items()}
    return MethodInfo(name, text.split("\n\n")[0], paper, chosen.shape.name, tuple(needs), defaults)
