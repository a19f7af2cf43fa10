"""Methods that learn in a training what goes: a penalty or gates bring it to zero, then it is removed."""

from __future__ import annotations

from typing import Any

from prunekit.parts.allocation import PerLayer, Zeros
from prunekit.parts.granularity import Block, FilterShape, Granularity, Unit, Weight
from prunekit.parts.regularize import L0, VIB, GroupLasso, Regularizer
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import AllocationDecides, Linear
from prunekit.recipe import Recipe, method
from prunekit.training import Training, TrainingLike, training_of

__all__ = [
    "brain_damage",
    "l0_units",
    "l0_weights",
    "ssl_depth",
    "ssl_filter_shapes",
    "ssl_filters",
    "vib_units",
]


@method
def ssl_filters(
    strength: float = 0.02, epochs: float = 20, fine_tune: float = 10, training: TrainingLike = None
) -> Recipe:
    """The filters that a group lasso brings to zero in `epochs` of training, then fine-tuning.

    Paper: Wen et al. 2016, arXiv 1608.03665
    """
    tuning = FineTune(training=training_of(fine_tune, training))
    lasso = GroupLasso(strength=strength)
    return _zeroed(lasso, Unit(kinds=("filters",)), training_of(epochs, training), retrain=tuning)


@method
def ssl_filter_shapes(
    strength: float = 0.02, epochs: float = 20, fine_tune: float = 10, training: TrainingLike = None
) -> Recipe:
    """The filter shapes that a group lasso brings to zero in `epochs` of training, then fine-tuning.

    Paper: Wen et al. 2016, arXiv 1608.03665
    """
    tuning = FineTune(training=training_of(fine_tune, training))
    lasso = GroupLasso(strength=strength, groups="filter_shapes")
    return _zeroed(lasso, FilterShape(), training_of(epochs, training), retrain=tuning)


@method
def ssl_depth(
    strength: float = 0.1, epochs: float = 20, fine_tune: float = 10, training: TrainingLike = None
) -> Recipe:
    """The residual branches that a group lasso brings to zero in `epochs` of training, then fine-tuning.

    Paper: Wen et al. 2016, arXiv 1608.03665
    """
    tuning = FineTune(training=training_of(fine_tune, training))
    lasso = GroupLasso(strength=strength, groups="blocks")
    return _zeroed(lasso, Block(), training_of(epochs, training), retrain=tuning)


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
    share = training_of(epochs, training, shares=steps + 1).with_regularizer(lasso)
    return Recipe(
        warm_up=share,
        granularity=FilterShape(pool="l2"),
        allocation=PerLayer(),
        schedule=Linear(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=share),
    )


@method
def l0_units(
    sparsity: float = 0.5,
    epochs: float = 20,
    lr: float = 0.01,
    ramp: int | None = None,
    training: TrainingLike = None,
) -> Recipe:
    """Hard-concrete gates on whole units in a training, led to a number of units that stay.

    Paper: Louizos, Welling, Kingma 2018, arXiv 1712.01312; Lagrangian: Xia et al. 2022, arXiv 2204.00408
    """
    gates = L0(of="units", density=1 - sparsity, lr=lr, ramp=ramp)
    return _zeroed(gates, Unit(), training_of(epochs, training))


@method
def l0_weights(
    sparsity: float = 0.9,
    epochs: float = 20,
    lr: float = 0.01,
    ramp: int | None = None,
    training: TrainingLike = None,
) -> Recipe:
    """Hard-concrete gates on single weights in a training, led to a number of weights that stay.

    Paper: Louizos, Welling, Kingma 2018, arXiv 1712.01312; Lagrangian: Xia et al. 2022, arXiv 2204.00408
    """
    gates = L0(of="weights", density=1 - sparsity, lr=lr, ramp=ramp)
    return _zeroed(gates, Weight(), training_of(epochs, training), allocation=Zeros(floor=0))


@method
def vib_units(
    strength: float = 0.1,
    epochs: float = 20,
    lr: float = 0.003,
    training: TrainingLike = None,
) -> Recipe:
    """Gates with Gaussian noise on whole units in a training, of which those close that let little through.

    Paper: Dai, Zhu, Guo, Wipf 2018 (VIBNet), arXiv 1802.10399
    """
    return _zeroed(VIB(strength=strength, lr=lr), Unit(), training_of(epochs, training))


def _zeroed(
    regularizer: Regularizer, granularity: Granularity, training: Training, **settings: Any
) -> Recipe:
    """A training under a regularizer, then the removal of what that brought to zero.

    Args:
        regularizer: that acts in the training.
        granularity: of what it brings to zero.
        training: without it.
        settings: the recipe's others.
    """
    return Recipe(
        granularity=granularity,
        schedule=AllocationDecides(),
        warm_up=training.with_regularizer(regularizer),
        **{"allocation": Zeros(), **settings},
    )
