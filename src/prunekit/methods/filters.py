"""Methods that were made for the filters of convolutions; they remove neurons as well."""

from __future__ import annotations

from prunekit.methods._settings import method
from prunekit.methods._training import TrainingLike, training_of
from prunekit.parts.allocation import PerLayer
from prunekit.parts.granularity import Unit
from prunekit.parts.repair import ChannelScale
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import Linear, OneShot
from prunekit.parts.scores import FeatureTaylor, GeometricMedian, NormScale, ThiNet
from prunekit.recipe import Recipe


@method
def thinet(sparsity: float = 0.5, epochs: float = 1, training: TrainingLike = None) -> Recipe:
    """The units that the next layer misses least, layer by layer, with rescaling and fine-tuning after each.

    Paper: Luo et al. 2017, arXiv 1707.06342
    """
    return Recipe(
        score=ThiNet(),
        shape=Unit(),
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
        shape=Unit(),
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
        shape=Unit(),
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
        shape=Unit(),
        allocation=PerLayer(),
        schedule=OneShot(sparsity=sparsity),
        retrain=FineTune(training=training_of(epochs, training)),
    )
