"""Weight sharing: the weights of each layer in clusters by k-means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from prunekit.compress import optimal_kmeans, published_kmeans
from prunekit.parts.context import StepContext
from prunekit.parts.quantize.base import FewValues, LayerQuantizer, within
from prunekit.parts.quantize.shared_values import SharedValues
from prunekit.targets import value_by_layer
from prunekit.training import Training

Bits = Annotated[int, Field(ge=1, le=12)]


class KMeans(LayerQuantizer):
    """The centroids of 2^bits clusters of a layer's nonzero weights, one value for all weights of each.

    With a `training` the values are trained: the gradient of a centroid is the sum of the gradients of the
    weights that share it, and momentum and weight decay are those of the centroids. Clusters stay as they
    are; values that become equal, or zero, are no more told apart.

    Published are 6 bits for LeNet-300-100, and 8 bits for convolutions and 5 for linear layers of others
    (`{Conv2d: 8, Linear: 5}`), with `start: linear`.

    Attributes:
        bits: one number, or a mapping from types of layers, or names, globs or `re:` patterns of them, to
            numbers; names come before types, `*` stands for all other layers, and every layer needs a number.
        start: the centroids before Lloyd's iterations: `linear`, equally spaced from the least weight to the
            greatest; or none of that but the `optimal` clusters, of the least squared error.
    """

    name = "kmeans"
    paper = "Han, Mao, Dally 2016, arXiv 1510.00149, section 3"

    bits: Annotated[Bits | dict[str, Bits], within(1, 12, of=Mapping, whole=True)] = 6
    start: Literal["linear", "optimal"] = "linear"

    def check(self, model: nn.Module) -> None:
        """Every layer must have one number of bits."""
        self._layer_bits(model)

    def stages(self, context: StepContext) -> Iterator[tuple[FewValues, Training | None]]:
        """Cluster the weights of each layer by themselves."""
        clusters = published_kmeans if self.start == "linear" else optimal_kmeans
        bits = self._layer_bits(context.model)
        for name, number in bits.items():
            weight = context.model.get_parameter(name).detach()
            found = clusters(weight.cpu().double().numpy(), 2**number)
            weight.copy_(torch.from_numpy(found.values()))
        yield SharedValues(context.model, list(bits), half=self.half_biases), self.training

    def _layer_bits(self, model: nn.Module) -> dict[str, int]:
        targets = self.targets(model)
        if isinstance(self.bits, int):
            return {target.name: self.bits for target in targets}
        return value_by_layer("bits", self.bits, targets)
