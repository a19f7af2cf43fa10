"""Methods that prune in one step, without retraining, by what the layers are given."""

from __future__ import annotations

from prunekit.methods._settings import method
from prunekit.parts.allocation import OWL, PerLayer
from prunekit.parts.repair import MaskedLeastSquares, SparseGPTUpdate
from prunekit.parts.schedule import OneShot
from prunekit.parts.scores import Wanda
from prunekit.parts.selection import ADMM, SparseGPT
from prunekit.recipe import Recipe


@method
def wanda(sparsity: float = 0.5) -> Recipe:
    """The least |w| ||x|| of every output row, the same share of all rows.

    Paper: Sun et al. 2023, arXiv 2306.11695
    """
    return Recipe(score=Wanda(), allocation=PerLayer(), schedule=OneShot(sparsity=sparsity))


@method
def owl_wanda(sparsity: float = 0.5) -> Recipe:
    """The least |w| ||x|| of every layer, layers with many outliers kept denser.

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
