"""Methods that remove single weights by second derivatives, or by what their layers are given."""

from __future__ import annotations

from typing import Literal

from prunekit.parts.allocation import OWL, PerLayer
from prunekit.parts.repair import MaskedLeastSquares, OBSRefit, OBSUpdate, SparseGPTUpdate
from prunekit.parts.retrain import Continued, FineTune
from prunekit.parts.schedule import FixedCount, Geometric, OneShot
from prunekit.parts.scores import OBD, OBS, RIA, BlockFisher, InputDeviation, LayerOBS, Wanda
from prunekit.parts.selection import ADMM, LayerL0, SparseGPT
from prunekit.recipe import Recipe, method
from prunekit.training import Training, TrainingLike, given_of, training_of

__all__ = [
    "alps",
    "block_fisher",
    "exact_layer_obs",
    "iterative_obd",
    "layer_l0",
    "layer_obs",
    "layer_obs_retrained",
    "masked_least_squares",
    "obd",
    "obs",
    "owl_wanda",
    "ria",
    "sparsegpt",
    "wanda",
]


Form = Literal["exact", "published"]


@method
def obd(sparsity: float = 0.9, form: Form = "exact") -> Recipe:
    """Optimal brain damage: the least w^2 h / 2 by the diagonal of the loss's Hessian, in one step.

    Paper: LeCun, Denker, Solla 1990, NIPS 2
    """
    return Recipe(score=OBD(form=form), schedule=OneShot(sparsity=sparsity))


@method
def iterative_obd(
    sparsity: float = 0.9,
    steps: int = 10,
    epochs: float = 5,
    training: TrainingLike = None,
    form: Form = "exact",
) -> Recipe:
    """Optimal brain damage in rounds: remove the same share of what is left, retrain, repeat.

    The curvature is the exact Gauss-Newton diagonal, see the score `obd`, or with `form="published"` that of
    the paper's recursion, for chains of layers.

    Paper: LeCun, Denker, Solla 1990, NIPS 2
    """
    return Recipe(
        score=OBD(form=form),
        schedule=Geometric(sparsity=sparsity, steps=steps),
        retrain=FineTune(training=training_of(epochs, training)),
    )


@method
def obs(sparsity: float = 0.5, damp: float = 1e-4) -> Recipe:
    """Optimal brain surgeon on a whole small network: every removal is made up for by all other weights.

    Paper: Hassibi, Stork 1993, NIPS 5
    """
    return Recipe(score=OBS(damp=damp), repair=OBSRefit(damp=damp), schedule=OneShot(sparsity=sparsity))


@method
def block_fisher(sparsity: float = 0.9, block: int = 50) -> Recipe:
    """The least w^2 / (2 [F^-1]_qq) by the empirical Fisher matrix in blocks, in one step, without an update.

    Paper: Singh, Alistarh 2020, arXiv 2004.14340
    """
    return Recipe(score=BlockFisher(block=block), schedule=OneShot(sparsity=sparsity))


@method
def layer_obs(sparsity: float = 0.9, every: int = 2000, damp: float = 0.01) -> Recipe:
    """Layer-wise OBS by its published score and update, both renewed after every 2,000 removed weights.

    Paper: Dong, Chen, Pan 2017, arXiv 1705.07565
    """
    return Recipe(
        score=LayerOBS(form="shared", damp=damp),
        repair=OBSUpdate(damp=damp),
        schedule=FixedCount(every=every, sparsity=sparsity),
    )


@method
def layer_obs_retrained(
    sparsity: float = 0.9,
    every: int = 2000,
    iterations: int = 3,
    damp: float = 0.01,
    training: TrainingLike = None,
) -> Recipe:
    """`layer_obs`, with 3 iterations of one training after every 2,000 removed weights.

    Paper: Dong, Chen, Pan 2017, arXiv 1705.07565
    """
    given = training if isinstance(training, Training) else {"iterations": iterations, **given_of(training)}
    return Recipe(
        score=LayerOBS(form="shared", damp=damp),
        repair=OBSUpdate(damp=damp),
        schedule=FixedCount(every=every, sparsity=sparsity),
        retrain=Continued(training=Training.parse(given)),
    )


@method
def exact_layer_obs(sparsity: float = 0.9, damp: float = 0.01) -> Recipe:
    """Layer-wise OBS renewed after every single removal, all layers in one ranking, no retraining.

    Paper: Frantar, Singh, Alistarh 2022, arXiv 2208.11580, on Dong, Chen, Pan 2017, arXiv 1705.07565
    """
    return Recipe(
        score=LayerOBS(damp=damp),
        repair=MaskedLeastSquares(damp=damp),
        schedule=OneShot(sparsity=sparsity),
    )


@method
def masked_least_squares(sparsity: float = 0.9, damp: float = 0.01) -> Recipe:
    """The least |w| std(x) of all layers in one step, then each row's survivors fitted to its old outputs.

    Paper: the reconstruction of Frantar, Singh, Alistarh 2022, arXiv 2208.11580, on a mask by Sun et al. 2023
    """
    return Recipe(
        score=InputDeviation(),
        repair=MaskedLeastSquares(damp=damp),
        schedule=OneShot(sparsity=sparsity),
    )


@method
def wanda(sparsity: float = 0.5) -> Recipe:
    """The least |w| ||x|| of every output row, the same share of all rows.

    x is measured on the network before pruning; in the paper behind the blocks pruned so far. With `order:
    forward` in the recipe it is measured behind the layers pruned so far.

    Paper: Sun et al. 2023, arXiv 2306.11695
    """
    return Recipe(score=Wanda(), allocation=PerLayer(), schedule=OneShot(sparsity=sparsity))


@method
def ria(sparsity: float = 0.5) -> Recipe:
    """The least share of its input's and its output's weights, times ||x||^0.5; the same share of all layers.

    x is measured as by `wanda`.

    Paper: Zhang, Bai, Lin, Zhao, Hou, Cannistraci 2024, ICLR, openreview Tr0lPx9woF
    """
    return Recipe(score=RIA(), allocation=PerLayer(), schedule=OneShot(sparsity=sparsity))


@method
def owl_wanda(sparsity: float = 0.5) -> Recipe:
    """The least |w| ||x|| of every layer, layers with many outliers kept denser.

    x is measured as by `wanda`. A layer is a weight tensor, in the paper a block of a transformer.

    Paper: Yin et al. 2024, arXiv 2310.05175
    """
    return Recipe(score=Wanda(within="layer"), allocation=OWL(), schedule=OneShot(sparsity=sparsity))


@method
def sparsegpt(sparsity: float = 0.5, damp: float = 0.01) -> Recipe:
    """Columns from left to right, each made up for by those behind it, layer by layer.

    Paper: Frantar, Alistarh 2023, arXiv 2301.00774
    """
    return Recipe(
        selection=SparseGPT(damp=damp),
        repair=SparseGPTUpdate(damp=damp),
        allocation=PerLayer(),
        order="forward",
        schedule=OneShot(sparsity=sparsity),
    )


@method
def layer_l0(sparsity: float = 0.5, damp: float = 0.01) -> Recipe:
    """L0 gates fitted to the outputs of each layer, then a least-squares refit, layer by layer.

    Paper: objective by Louizos, Welling, Kingma 2018, arXiv 1712.01312; fitted layer by layer: prunekit's own
    """
    return Recipe(
        selection=LayerL0(damp=damp),
        repair=MaskedLeastSquares(damp=damp),
        allocation=PerLayer(),
        order="forward",
        schedule=OneShot(sparsity=sparsity),
    )


@method
def alps(sparsity: float = 0.5, damp: float = 0.01) -> Recipe:
    """A search for the support of each layer by ADMM, then a least-squares refit, layer by layer.

    Paper: Meng et al. 2024, arXiv 2406.07831
    """
    return Recipe(
        selection=ADMM(damp=damp),
        repair=MaskedLeastSquares(damp=damp),
        allocation=PerLayer(),
        order="forward",
        schedule=OneShot(sparsity=sparsity),
    )
