"""Methods that remove whole units: neurons, filters, pieces of maxout units, and whole blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from prunekit.errors import InputError, shown
from prunekit.parts.allocation import BelowMean, Global, PerLayer
from prunekit.parts.granularity import Block, Kind, MaxoutPiece, Unit
from prunekit.parts.repair import ChannelScale, FoldMean, NoRepair
from prunekit.parts.retrain import FineTune, Reinitialize, Retrain, Rewind
from prunekit.parts.schedule import AllocationDecides, Linear, OneShot
from prunekit.parts.scores import (
    N2PS,
    Activation,
    ActivationNorm,
    BlockInfluence,
    FeatureTaylor,
    Fluctuation,
    GeometricMedian,
    GradCAM,
    Magnitude,
    MaxoutWins,
    NormScale,
    Oracle,
    Random,
    Skeletonization,
    ThiNet,
    UnitTaylor,
    WeightGradient,
)
from prunekit.parts.stopping import ErrorLimit, NoStop
from prunekit.recipe import Recipe, method
from prunekit.settings import STEPS, WHOLE, whole
from prunekit.statistics.unit_statistics import Error
from prunekit.training import TrainingLike, training_of

__all__ = [
    "apoz",
    "apoz_units",
    "filter_norm",
    "flap",
    "geometric_median",
    "grad_cam_filters",
    "llm_pruner",
    "maxout_pruning",
    "minitron",
    "n2ps",
    "n2ps_units",
    "network_slimming",
    "oracle_units",
    "random_units",
    "shortgpt",
    "skeletonization",
    "structured_mlp",
    "taylor_filters",
    "taylor_units",
    "thinet",
]

_WIDTHS: tuple[Kind, ...] = ("filters", "neurons", "heads", "MLP width")
"""Whole heads, and not their widths."""


@method
def oracle_units(sparsity: float = 0.5, steps: int = 10, error: Error = "squared_error") -> Recipe:
    """The units whose switching off raises the true error least, ranked again in every step.

    Paper: Wolfe, Sharma, Raj 2017, arXiv 1701.04465
    """
    return Recipe(
        score=Oracle(error=error), granularity=Unit(), schedule=Linear(sparsity=sparsity, steps=steps)
    )


@method
def taylor_units(
    sparsity: float = 0.5, steps: int = 10, order: Literal[1, 2] = 2, error: Error = "squared_error"
) -> Recipe:
    """The units whose switching off a Taylor series in their gain predicts to cost least.

    Paper: Wolfe, Sharma, Raj 2017, arXiv 1701.04465
    """
    return Recipe(
        score=UnitTaylor(order=order, error=error),
        granularity=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
    )


@method
def skeletonization(
    sparsity: float = 0.5,
    steps: int = 10,
    epochs: float = 5,
    limit: float | None = None,
    training: TrainingLike = None,
) -> Recipe:
    """The units of least relevance, the derivative of the linear error by their gain, with brief retraining.

    With a `limit` the loss after a step may not pass it: the step that does is the last.

    Paper: Mozer, Smolensky 1989, NIPS 1
    """
    return Recipe(
        score=Skeletonization(),
        granularity=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
        stop=NoStop() if limit is None else ErrorLimit(limit=limit, roll_back=False),
    )


@method
def n2ps_units(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The units, input features among them, of least significance for the next layer, with retraining.

    The schedule says how far it goes; `n2ps` goes as far as the accuracy holds, as the paper does.

    Paper: Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7
    """
    return Recipe(
        score=N2PS(),
        granularity=Unit(inputs=True),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def n2ps(
    tau: float = 1.0,
    rounds: int = 10,
    increase: float = 0.01,
    epochs: float = 5,
    training: TrainingLike = None,
) -> Recipe:
    """All units and inputs below tau times their layer's mean significance, while the accuracy holds.

    Each round is followed by retraining; one after which the share of wrong classes has risen by more than
    `increase` is rolled back.

    Paper: Augasta, Kathirvalavakumar 2011, doi 10.1007/s11063-011-9196-7
    """
    return Recipe(
        score=N2PS(),
        granularity=Unit(inputs=True),
        allocation=BelowMean(tau=tau),
        schedule=AllocationDecides(steps=rounds),
        retrain=FineTune(training=training_of(epochs, training)),
        stop=ErrorLimit(of="error_rate", increase=increase),
    )


@method
def apoz(rounds: int = 3, epochs: float = 5, training: TrainingLike = None) -> Recipe:
    """The units with far more zeros behind their activation than the others of their layer.

    Those with more zeros than their layer's mean and one standard deviation, one layer after the
    other from the front, with retraining after each, in rounds; meant for ReLU.

    Paper: Hu et al. 2016, arXiv 1607.03250
    """
    return Recipe(
        score=Activation(what="nonzeros"),
        granularity=Unit(),
        allocation=BelowMean(deviations=1.0),
        schedule=AllocationDecides(steps=rounds),
        order="forward",
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def apoz_units(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The units with the largest share of zeros behind their activation, with retraining; meant for ReLU.

    Paper: Hu et al. 2016, arXiv 1607.03250
    """
    return Recipe(
        score=Activation(what="nonzeros"),
        granularity=Unit(),
        allocation=Global(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def filter_norm(sparsity: float = 0.5, epochs: float = 20, training: TrainingLike = None) -> Recipe:
    """The filters of the smallest L1 norm, the same fraction of every layer in one step, then retraining.

    Paper: Li et al. 2016, arXiv 1608.08710
    """
    return Recipe(
        score=Magnitude(),
        granularity=Unit(),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def structured_mlp(
    sparsity: float = 0.5,
    start: Literal["fresh", "initial", "trained"] = "trained",
    rounds: int = 5,
    layers: int = 2,
    epochs: float = 20,
    training: TrainingLike = None,
) -> Recipe:
    """The units of the smallest L1 norm, layer by layer; then new, initial or trained values.

    Every hidden layer loses the same fraction, rounded to whole units; weights from units that were removed
    before count as zero. New random values (`fresh`), drawn as those of the full network are, and the values
    before the first training (`initial`) follow one step; with `trained` values it goes in `rounds` equal
    shares, each with its part of the epochs. `layers` is the number of hidden layers: training waits until
    all have been pruned.

    Paper: Li et al. 2016, arXiv 1608.08710 (greedy, for neurons)
    """
    starts: dict[str, Callable[..., Retrain]] = {
        "fresh": Reinitialize,
        "initial": Rewind,
        "trained": FineTune,
    }
    if not isinstance(start, str) or start not in starts:
        raise InputError(f"start {shown(start)} is none of {', '.join(starts)}")
    gradual = start == "trained"
    rounds = whole("rounds", rounds, 1, STEPS)
    shares = rounds if gradual else 1
    share = training_of(epochs, training, shares=shares)
    return Recipe(
        score=Magnitude(),
        granularity=Unit(),
        allocation=PerLayer(),
        schedule=Linear(sparsity=sparsity, steps=shares) if gradual else OneShot(sparsity=sparsity),
        order="forward",
        retrain=starts[start](training=share),
        retrain_every=layers,
    )


@method
def random_units(sparsity: float = 0.5) -> Recipe:
    """Units drawn at random, in one step: the control of every comparison of units."""
    return Recipe(score=Random(), granularity=Unit(), schedule=OneShot(sparsity=sparsity))


@method
def thinet(sparsity: float = 0.5, epochs: float = 1, training: TrainingLike = None) -> Recipe:
    """The units that the next layer misses least, layer by layer, with rescaling and fine-tuning after each.

    Paper: Luo et al. 2017, arXiv 1707.06342
    """
    return Recipe(
        score=ThiNet(),
        granularity=Unit(),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
        order="forward",
        repair=ChannelScale(),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def taylor_filters(
    sparsity: float = 0.5,
    steps: int = 10,
    epochs: float = 1,
    macs: float = 0.0,
    training: TrainingLike = None,
) -> Recipe:
    """The units of the least |output times gradient|, a few at a time over all layers, with fine-tuning.

    Paper: Molchanov et al. 2017, arXiv 1611.06440
    """
    return Recipe(
        score=FeatureTaylor(macs=macs),
        granularity=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def grad_cam_filters(
    sparsity: float = 0.5, steps: int = 10, epochs: float = 1, training: TrainingLike = None
) -> Recipe:
    """The units of the least Grad-CAM weight over the norm of their layer, a few at a time, with fine-tuning.

    Paper: the weights of Selvaraju et al. 2017, arXiv 1610.02391, in the steps of Molchanov et al. 2017
    """
    return Recipe(
        score=GradCAM(normalize=True),
        granularity=Unit(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def network_slimming(sparsity: float = 0.5, epochs: float = 20, training: TrainingLike = None) -> Recipe:
    """The units with the smallest batch norm scales of the whole network, in one step, then fine-tuning.

    Paper: Liu et al. 2017, arXiv 1708.06519
    """
    return Recipe(
        score=NormScale(),
        granularity=Unit(),
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def geometric_median(sparsity: float = 0.5, epochs: float = 20, training: TrainingLike = None) -> Recipe:
    """The filters nearest to the geometric median of their layer, the same fraction of every layer.

    Paper: He et al. 2019, arXiv 1811.00250
    """
    return Recipe(
        score=GeometricMedian(),
        granularity=Unit(),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def maxout_pruning(
    pieces: int = 4, left: int = 1, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """The least used piece of every maxout unit, one in each round, with retraining, until `left` are left.

    Paper: Rueda, Grzeszick, Fink 2017, arXiv 1707.06838
    """
    pieces = whole("pieces", pieces, 2, WHOLE)
    rounds = pieces - whole("left", left, 1, pieces - 1)
    return Recipe(
        score=MaxoutWins(),
        granularity=MaxoutPiece(),
        allocation=PerLayer(),
        schedule=Linear(sparsity=rounds / pieces, steps=rounds),
        retrain=FineTune(training=training_of(epochs, training)),
        calibration=60_000,
    )


@method
def flap(sparsity: float = 0.2, even: bool = False, compensate: bool = False) -> Recipe:
    """The heads, neurons and filters of the least variance times squares of the weights that read them.

    All layers compete by standard scores, or with `even` each loses the same share, as where a configuration
    says one width for all. With `compensate` the mean of what goes is put into the next layer's bias, which
    must be there.

    Paper: An, Zhao, Yu, Tang, Wang 2023 (FLAP), arXiv 2312.11983
    """
    return Recipe(
        score=Fluctuation(),
        granularity=Unit(kinds=_WIDTHS),
        allocation=PerLayer() if even else Global(),
        repair=FoldMean() if compensate else NoRepair(),
        schedule=OneShot(sparsity=sparsity),
    )


@method
def minitron(sparsity: float = 0.25) -> Recipe:
    """The heads, neurons and filters that give the next layer the least, the same share of every layer.

    The paper trains with distillation behind it: put `retrain` and `teacher` into the recipe.

    Paper: Muralidharan et al. 2024 (Minitron), arXiv 2407.14679
    """
    return Recipe(
        score=ActivationNorm(),
        granularity=Unit(kinds=_WIDTHS),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
    )


@method
def llm_pruner(sparsity: float = 0.2) -> Recipe:
    """The heads, neurons and filters whose weights, all that go with them, have the least |w dL/dw| in sum.

    The same share of every layer. The paper leaves the first and last blocks whole, and repairs with low-rank
    adapters.

    Paper: Ma, Fang, Wang 2023 (LLM-Pruner, element-wise, first order), arXiv 2305.11627
    """
    return Recipe(
        score=WeightGradient(),
        granularity=Unit(kinds=_WIDTHS, over="all", combine="sum"),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
    )


@method
def shortgpt(sparsity: float = 0.25) -> Recipe:
    """The blocks, attention and MLP together, that turn what goes through them least, all at once.

    Paper: Men et al. 2024 (ShortGPT), arXiv 2403.03853
    """
    return Recipe(score=BlockInfluence(), granularity=Block(whole=True), schedule=OneShot(sparsity=sparsity))
