"""Methods that remove single weights by magnitude, gradient or correlation; and the controls."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.parts.allocation import ERK, NoPruning, PerLayer, Sensitivity, Threshold
from prunekit.parts.granularity import NM
from prunekit.parts.grow import Grow, GrowAtRandom, GrowByGradient
from prunekit.parts.retrain import Continued, Distill, FineTune, RedrawTicket, Reinitialize, Retrain, Rewind
from prunekit.parts.schedule import AllocationDecides, Constant, Cubic, Geometric, Linear, OneShot
from prunekit.parts.scores import (
    LAMP,
    Correlation,
    Gradient,
    GraSP,
    Magnitude,
    Movement,
    Random,
    SynFlow,
    WeightGradient,
)
from prunekit.parts.selection import CorrelatedHalves
from prunekit.recipe import Recipe, method
from prunekit.training import TrainingLike, training_of

__all__ = [
    "correlation",
    "distilled_magnitude",
    "erk_magnitude",
    "gradient",
    "gradual_magnitude",
    "grasp",
    "iterative_magnitude",
    "lamp",
    "layer_magnitude",
    "lottery_ticket",
    "lottery_ticket_linear",
    "magnitude",
    "movement",
    "n_m",
    "random",
    "random_ticket",
    "reinitialized_magnitude",
    "rigl",
    "sensitivity_magnitude",
    "set",
    "snip",
    "synflow",
    "threshold_magnitude",
    "unpruned",
]


@method
def random(sparsity: float = 0.9) -> Recipe:
    """Weights drawn at random, in one step: the control of every comparison."""
    return Recipe(score=Random(), schedule=OneShot(sparsity=sparsity))


@method
def magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of all layers, in one step.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(score=Magnitude(), schedule=OneShot(sparsity=sparsity))


@method
def layer_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, the same fraction everywhere, in one step.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(score=Magnitude(), allocation=PerLayer(), schedule=OneShot(sparsity=sparsity))


@method
def lamp(sparsity: float = 0.9) -> Recipe:
    """The smallest w^2 relative to all larger ones of its layer, in one ranking of all layers, in one step.

    Paper: Lee, Park, Mo, Ahn, Shin 2021, arXiv 2010.07611
    """
    return Recipe(score=LAMP(), schedule=OneShot(sparsity=sparsity))


@method
def threshold_magnitude(
    q: float = 0.5, rounds: int = 1, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Every |w| below q standard deviations of its layer; prune, retrain, repeat.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(
        score=Magnitude(),
        allocation=Threshold(q=q),
        schedule=AllocationDecides(steps=rounds),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def iterative_magnitude(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The smallest |w|, the same share of what is left in every step, retrained after each.

    Paper: Han et al. 2015, arXiv 1506.02626
    """
    return Recipe(
        score=Magnitude(),
        schedule=Geometric(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def gradual_magnitude(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Automated gradual pruning: the smallest |w| by a cubic schedule while one training goes on.

    Paper: Zhu, Gupta 2017, arXiv 1710.01878
    """
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(),
        schedule=Cubic(sparsity=sparsity, steps=steps),
        retrain=Continued(training=training_of(epochs, training)),
    )


def _dynamic(
    grow: Grow, sparsity: float, steps: int, dense: Sequence[str], epochs: float, training: TrainingLike
) -> Recipe:
    """One training at one density, whose last exchange is followed by the rest."""
    rest = 0.25
    return Recipe(
        score=Magnitude(),
        grow=grow,
        regrow=True,
        allocation=ERK(dense=tuple(dense)),
        schedule=Constant(sparsity=sparsity, steps=steps),
        retrain=Continued(training=training_of((1 - rest) * epochs, training, shares=steps), rest=rest),
        calibration=256,
    )


@method
def set(
    sparsity: float = 0.9,
    steps: int = 30,
    fraction: float = 0.3,
    dense: Sequence[str] = (),
    epochs: float = 10,
    training: TrainingLike = None,
) -> Recipe:
    """Sparse evolutionary training: the smallest |w| of each layer are exchanged for weights drawn at random.

    Meant for a network before training, as `rigl`, whose settings it has.

    Paper: Mocanu et al. 2018, arXiv 1707.04780
    """
    return _dynamic(GrowAtRandom(fraction=fraction), sparsity, steps, dense, epochs, training)


@method
def rigl(
    sparsity: float = 0.9,
    steps: int = 30,
    fraction: float = 0.3,
    dense: Sequence[str] = (),
    epochs: float = 10,
    training: TrainingLike = None,
) -> Recipe:
    """RigL: the smallest |w| of each layer are exchanged for the removed weights of largest |dL/dw|.

    Meant for a network before training. The first of the steps draws the weights that stay at random, by the
    Erdős-Rényi-Kernel rule, with the layers of the patterns `dense` whole. The epochs are those of all
    training; its last quarter exchanges nothing.

    Paper: Evci et al. 2020, arXiv 1911.11134
    """
    return _dynamic(GrowByGradient(fraction=fraction), sparsity, steps, dense, epochs, training)


@method
def erk_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, narrow layers kept denser by the Erdős-Rényi-Kernel rule.

    Paper: Evci et al. 2020, arXiv 1911.11134
    """
    return Recipe(score=Magnitude(), allocation=ERK(), schedule=OneShot(sparsity=sparsity))


@method
def sensitivity_magnitude(sparsity: float = 0.9) -> Recipe:
    """The smallest |w| of each layer, every layer as far as its measured loss allows.

    Paper: Han et al. 2015, arXiv 1506.02626, section 5
    """
    return Recipe(score=Magnitude(), allocation=Sensitivity(), schedule=OneShot(sparsity=sparsity))


@method
def n_m(n: int = 2, m: int = 4) -> Recipe:
    """N:M pattern by magnitude: n of every m consecutive inputs are kept.

    Paper: Mishra et al. 2021, arXiv 2104.08378
    """
    granularity = NM(n=n, m=m)
    return Recipe(
        score=Magnitude(),
        granularity=granularity,
        allocation=PerLayer(),
        schedule=OneShot(sparsity=1 - granularity.n / granularity.m),
    )


@method
def gradient(sparsity: float = 0.9) -> Recipe:
    """The smallest |dL/dw|, in one step.

    Paper: Blalock et al. 2020, arXiv 2003.03033, without their factor |w|
    """
    return Recipe(score=Gradient(), schedule=OneShot(sparsity=sparsity))


@method
def snip(sparsity: float = 0.9) -> Recipe:
    """The smallest |w dL/dw|, in one step; meant for a network before training.

    Paper: Lee, Ajanthan, Torr 2019, arXiv 1810.02340
    """
    return Recipe(score=WeightGradient(), schedule=OneShot(sparsity=sparsity))


@method
def grasp(sparsity: float = 0.9) -> Recipe:
    """The weights whose removal lowers the gradient flow least, or raises it; for a network before training.

    Paper: Wang, Zhang, Grosse 2020, arXiv 2002.07376
    """
    return Recipe(score=GraSP(), schedule=OneShot(sparsity=sparsity))


@method
def synflow(sparsity: float = 0.9, steps: int = 100) -> Recipe:
    """The least |w dR/dw| of the sum R over all paths, in many small steps; for a network before training.

    Paper: Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467
    """
    return Recipe(score=SynFlow(), schedule=Geometric(sparsity=sparsity, steps=steps), calibration=1)


@method
def movement(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The weights of each layer that training moves towards zero, by a cubic schedule while it goes on.

    The epochs come before the first step and after every one of them.

    Paper: Sanh, Wolf, Rush 2020, arXiv 2005.07683
    """
    chosen = training_of(epochs, training)
    return Recipe(
        score=Movement(training=chosen),
        allocation=PerLayer(),
        schedule=Cubic(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=chosen),
    )


@method
def distilled_magnitude(
    sparsity: float = 0.9,
    steps: int = 10,
    epochs: float = 5,
    temperature: float = 2.0,
    share: float = 0.5,
    training: TrainingLike = None,
) -> Recipe:
    """`iterative_magnitude`, retrained on the softened outputs of the network before pruning as well.

    Paper: Hinton, Vinyals, Dean 2015, arXiv 1503.02531
    """
    return Recipe(
        score=Magnitude(),
        schedule=Geometric(sparsity=sparsity, steps=steps),
        retrain=Distill(temperature=temperature, share=share, training=training_of(epochs, training)),
    )


def _ticket(rate: float, rounds: int, retrain: Retrain) -> Recipe:
    """The rounds of the lottery ticket and its controls; the output layer is pruned at half the rate."""
    return Recipe(
        score=Magnitude(),
        allocation=PerLayer(output_rate=0.5),
        schedule=Geometric(rate=rate, steps=rounds),
        retrain=retrain,
    )


@method
def lottery_ticket(
    rate: float = 0.2, rounds: int = 10, step: int = 0, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """Train, remove the smallest |w| of each layer, put survivors back to their initial values, repeat.

    The output layer is pruned at half the rate. With `step` > 0 the values are those of that training step
    (late rewinding).

    Paper: Frankle, Carbin 2019, arXiv 1803.03635
    """
    return _ticket(rate, rounds, Rewind(step=step, training=training_of(epochs, training)))


@method
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
        retrain=Rewind(training=training_of(epochs, training)),
    )


@method
def random_ticket(
    rate: float = 0.2, rounds: int = 10, draw: int = 0, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """The control of the lottery ticket: exactly the ticket's masks, and new random values after the last.

    The paper takes three draws for each ticket.

    Paper: Frankle, Carbin 2019, arXiv 1803.03635
    """
    return _ticket(rate, rounds, RedrawTicket(draw=draw, training=training_of(epochs, training)))


@method
def reinitialized_magnitude(
    rate: float = 0.2, rounds: int = 10, epochs: float = 10, training: TrainingLike = None
) -> Recipe:
    """The rounds of the lottery ticket with new random values after each, from which the next mask follows.

    Paper: Frankle, Carbin 2019, arXiv 1803.03635, in a variant whose masks are not the ticket's
    """
    return _ticket(rate, rounds, Reinitialize(training=training_of(epochs, training)))


@method
def unpruned(rounds: int = 10, epochs: float = 5, training: TrainingLike = None) -> Recipe:
    """Nothing is removed, but the network is trained as long as the others: the second control."""
    return Recipe(
        allocation=NoPruning(),
        schedule=AllocationDecides(steps=rounds),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def correlation(
    sparsity: float = 0.9, strong: float = 0.75, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Mostly strongly correlated connections, drawn at random; one layer at a time from the top, fine-tuned.

    With `strong` 1 the stronger halves alone are drawn from.

    Paper: Sun, Wang, Tang 2016, CVPR, arXiv 1512.01891
    """
    return Recipe(
        score=Correlation(),
        selection=CorrelatedHalves(strong=strong),
        allocation=PerLayer(),
        order="backward",
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )
