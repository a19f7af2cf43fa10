"""Weight sharing within a number of bytes: the bits of each layer by rate and distortion."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import nn

from prunekit.compress import Quantized, choose_rates, optimal_kmeans
from prunekit.errors import InputError, shown
from prunekit.graph.rows import row_layers
from prunekit.measure import read_amount
from prunekit.parts.context import StepContext
from prunekit.parts.quantize.base import FewValues, LayerQuantizer, within
from prunekit.parts.quantize.kmeans import Bits
from prunekit.parts.quantize.shared_values import SharedValues
from prunekit.settings import WHOLE
from prunekit.statistics import GaussNewtonDiagonal, Statistic
from prunekit.training import Training


def _in_bytes(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    amount, cost = read_amount(value)
    if cost != "bytes":
        raise ValueError(f"{shown(value)} is of {cost}, not of bytes")
    return math.floor(amount)


class BitAllocation(LayerQuantizer):
    """Optimal clusters of each layer's nonzero weights, as many as are best for the loss within some bytes.

    The distortion of a layer is what the loss rises by, to second order and each weight by itself: the sum of
    h (w' - w)^2 / 2, h the diagonal of the Gauss-Newton Hessian on the calibration sample, by which the
    clusters are the optimal ones, too. Its rate is the entropy of which value each nonzero weight has, and
    the values themselves. Positions cost the same whatever the bits are and do not count. With a `training`
    the values are trained as those of `kmeans`.

    Attributes:
        bytes: the most that the rates of all layers may add up to; also as "500 kB".
        bits: what a layer may have: 2^bits clusters.
        importance: by which distortions count: `curvature`, or `none`, by which all weights count alike.
    """

    name = "rate_distortion"

    bytes: Annotated[int, BeforeValidator(_in_bytes), Field(ge=1, le=WHOLE)]
    bits: Annotated[tuple[Bits, ...], within(1, 12, of=list, whole=True)] = (1, 2, 3, 4, 5, 6, 7, 8)
    importance: Literal["curvature", "none"] = "curvature"

    @property
    def measures(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """The curvature, if it counts."""
        return (GaussNewtonDiagonal(),) if self.importance == "curvature" else ()

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """Whether it measures anything."""
        return bool(self.measures)

    def check(self, model: nn.Module) -> None:
        """Curvature is that of linear and convolution layers."""
        names = [target.name for target in self.targets(model)]
        if self.importance == "curvature":
            row_layers(model, names)

    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """Cluster each layer with each number of bits, and take the best choice."""
        names = self.filled(context.model)
        tried = {name: self._tried(name, context) for name in names}
        options = [[(rate, distortion) for rate, distortion, _ in each] for each in tried.values()]
        try:
            chosen = choose_rates(options, self.bytes)
        except InputError as error:
            raise InputError(f"quantize {self.name}: bytes: {error}") from None
        for (name, each), number in zip(tried.items(), chosen, strict=True):
            weight = context.model.get_parameter(name).detach()
            weight.copy_(torch.from_numpy(each[number][2].values()))
        yield SharedValues(context.model, names, half=self.half_biases), self.training

    def _tried(self, name: str, context: StepContext) -> list[tuple[float, float, Quantized]]:
        """(bytes, distortion, clusters) for each number of bits."""
        weight = context.model.get_parameter(name).detach().cpu().double().numpy()
        importance = np.ones_like(weight)
        if self.importance == "curvature":
            importance = context.statistics[GaussNewtonDiagonal()][name].cpu().numpy() / 2
        found = []
        for bits in sorted(set(self.bits)):
            clusters = optimal_kmeans(weight, 2**bits, importance)
            rate = _entropy(clusters.codes) / 8 + len(clusters.centroids) * (2 if self.half_biases else 4)
            found.append((rate, clusters.error(weight, importance), clusters))
        return found


def _entropy(codes: np.ndarray) -> float:
    """The bits of which value each nonzero weight has."""
    _, counts = np.unique(codes[codes != 0], return_counts=True)
    return float((counts * np.log2(counts.sum() / np.maximum(counts, 1))).sum()) if len(counts) else 0.0
