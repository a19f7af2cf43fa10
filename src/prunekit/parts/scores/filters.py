"""Scores that were made for the filters of convolutions; they rank neurons as well."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from prunekit.graph import Coupled
from prunekit.graph.members import group_norm_scales, unit_rows
from prunekit.limits import LARGE
from prunekit.parts.context import Scores, StepContext
from prunekit.parts.scores.units import UnitScore
from prunekit.statistics import FirstOrderTaylor, Statistic, UnitMacs
from prunekit.statistics.unit_statistics import Error
from prunekit.units import distances


class FeatureTaylor(UnitScore):
    """The mean over examples of |the mean over positions of output times gradient| of the unit.

    Attributes:
        error: what is differentiated.
        normalize: each layer is divided by its L2 norm, which makes layers comparable.
        macs: what is taken off per million multiply-accumulate operations that go with the unit, its own and
            those of the next layer: the paper's regularisation by FLOPs, with 1e-3 as its choice.
    """

    name = "feature_taylor"
    paper = "Molchanov et al. 2017, arXiv 1611.06440"
    error: Error = "cross_entropy"
    normalize: bool = True
    macs: float = Field(default=0.0, ge=0, le=LARGE)

    @property
    def statistic(self) -> Statistic:
        """The unnormalised criterion."""
        return FirstOrderTaylor(self.error)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The criterion, and the cost of units if it counts."""
        return (self.statistic, UnitMacs()) if self.macs else (self.statistic,)

    def __call__(self, context: StepContext) -> Scores:
        """The criterion over the norm of its layer, less the price of the unit."""
        found = super().__call__(context)
        if self.normalize:
            found = {name: value / _norm(value) for name, value in found.items()}
        if self.macs:
            macs = context.statistics[UnitMacs()]
            found = {name: value - self.macs * macs[name] / 1e6 for name, value in found.items()}
        return found


def _norm(values: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(values)
    return norm if norm > 0 else norm.new_ones(())


class NormScale(UnitScore):
    """|γ| of the batch norm behind the unit (network slimming); made for nets trained with an L1 on γ."""

    name = "norm_scale"
    paper = "Liu et al. 2017 (network slimming), arXiv 1708.06519"
    needs = ()

    def __call__(self, context: StepContext) -> Scores:
        """One scale per unit."""
        assert context.coupled is not None
        return {name: group_norm_scales(context.coupled, name) for name in context.kept}


class GeometricMedian(UnitScore):
    """The sum of distances to the layer's other filters: those near the geometric median go first (FPGM)."""

    name = "geometric_median"
    paper = "He et al. 2019 (FPGM), arXiv 1811.00250"
    needs = ()

    def __call__(self, context: StepContext) -> Scores:
        """One sum per unit, in float64."""
        assert context.coupled is not None
        return {
            name: _coupled_distances(context.coupled, name, context.weights, kept)
            for name, kept in context.kept.items()
        }


def _coupled_distances(coupled: Coupled, name: str, weights: Mapping[str, Tensor], kept: Tensor) -> Tensor:
    """Over each parameter that makes the units, combined."""
    found = []
    for member in coupled.members(coupled.group(name)):
        if member.tensor in weights:
            rows, there = unit_rows(name, weights[member.tensor], member)
            sums = torch.full((len(kept),), torch.nan, dtype=torch.float64, device=kept.device)
            sums[there] = distances(rows, kept[there])
            found.append(sums)
    return coupled.together(found)
