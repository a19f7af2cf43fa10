"""Methods that look at second derivatives: of the whole network's loss, or of each layer's own error."""

from __future__ import annotations

from prunekit.methods._settings import method
from prunekit.methods._training import TrainingLike, given_of, training_of
from prunekit.parts.repair import MaskedLeastSquares, OBSRefit, OBSUpdate
from prunekit.parts.retrain import FineTune
from prunekit.parts.schedule import Counts, Geometric, OneShot
from prunekit.parts.scores import OBD, OBS, InputDeviation, LayerOBS
from prunekit.recipe import Recipe
from prunekit.training import Training


@method
def obd(sparsity: float = 0.9) -> Recipe:
    """Optimal brain damage: the least w^2 h / 2 by the diagonal of the loss's Hessian, in one step.

    Paper: LeCun, Denker, Solla 1990, NIPS 2
    """
    return Recipe(score=OBD(), schedule=OneShot(sparsity=sparsity))


@method
def iterative_obd(
    sparsity: float = 0.9, steps: int = 10, epochs: float = 5, training: TrainingLike = None
) -> Recipe:
    """Optimal brain damage as published: remove the same share of what is left, retrain, repeat.

    Paper: LeCun, Denker, Solla 1990, NIPS 2
    """
    return Recipe(
        score=OBD(),
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
def layer_obs(sparsity: float = 0.9, every: int = 2000, damp: float = 0.01) -> Recipe:
    """Layer-wise OBS as published, its Hessians renewed after every 2,000 removed weights.

    Paper: Dong, Chen, Pan 2017, arXiv 1705.07565
    """
    return Recipe(
        score=LayerOBS(form="shared", damp=damp),
        repair=OBSUpdate(damp=damp),
        schedule=Counts(every=every, sparsity=sparsity),
    )


@method
def layer_obs_retrained(
    sparsity: float = 0.9,
    every: int = 2000,
    iterations: int = 3,
    damp: float = 0.01,
    training: TrainingLike = None,
) -> Recipe:
    """Layer-wise OBS as published, with 3 iterations of retraining after every 2,000 removed weights.

    Paper: Dong, Chen, Pan 2017, arXiv 1705.07565
    """
    given = training if isinstance(training, Training) else {"iterations": iterations, **given_of(training)}
    return Recipe(
        score=LayerOBS(form="shared", damp=damp),
        repair=OBSUpdate(damp=damp),
        schedule=Counts(every=every, sparsity=sparsity),
        retrain=FineTune(training=Training.parse(given)),
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
