"""Methods that learn in a training what goes: a penalty brings it to zero, then it is removed."""

from __future__ import annotations

from prunekit.parts.allocation import PerLayer, Zeros
from prunekit.parts.granularity import FilterShape, Unit
from prunekit.parts.regularize import GroupLasso
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import AllocationDecides, Linear
from prunekit.recipe import Recipe, method
from prunekit.training import Training, TrainingLike, training_of

__all__ = ["brain_damage", "ssl_filter_shapes", "ssl_filters"]


@method
def ssl_filters(
    strength: float = 0.02, epochs: float = 20, fine_tune: float = 10, training: TrainingLike = None
) -> Recipe:
    """The filters that a group lasso brings to zero in `epochs` of training, then fine-tuning.

    Paper: Wen et al. 2016, arXiv 1608.03665
    """
    return Recipe(
        warm_up=_penalised(training_of(epochs, training), GroupLasso(strength=strength)),
        granularity=Unit(kinds=("filters",)),
        allocation=Zeros(),
        schedule=AllocationDecides(),
        retrain=FineTune(training=training_of(fine_tune, training)),
    )


@method
def ssl_filter_shapes(
    strength: float = 0.02, epochs: float = 20, fine_tune: float = 10, training: TrainingLike = None
) -> Recipe:
    """The filter shapes that a group lasso brings to zero in `epochs` of training, then fine-tuning.

    Paper: Wen et al. 2016, arXiv 1608.03665
    """
    lasso = GroupLasso(strength=strength, groups="filter_shapes")
    return Recipe(
        warm_up=_penalised(training_of(epochs, training), lasso),
        granularity=FilterShape(),
        allocation=Zeros(),
        schedule=AllocationDecides(),
        retrain=FineTune(training=training_of(fine_tune, training)),
    )


@method
def brain_damage(
    sparsity: float = 0.8,
    steps: int = 5,
    strength: float = 0.02,
    epochs: float = 20,
    training: TrainingLike = None,
) -> Recipe:
    """The filter shapes of the smallest norm, step by step, while a group lasso keeps on shrinking them.

    Paper: Lebedev, Lempitsky 2016, arXiv 1506.02515
    """
    lasso = GroupLasso(strength=strength, groups="filter_shapes")
    share = _penalised(training_of(epochs, training, shares=steps + 1), lasso)
    return Recipe(
        warm_up=share,
        granularity=FilterShape(pool="l2"),
        allocation=PerLayer(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=share),
    )


def _penalised(training: Training, lasso: GroupLasso) -> Training:
    return training.model_copy(update={"regularize": (*training.regularize, lasso)})
