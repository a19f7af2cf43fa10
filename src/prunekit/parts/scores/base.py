"""What a score is: a pure function from the weights, and what data says of them, to numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from prunekit.parts.base import Part
from prunekit.parts.context import StepContext
from prunekit.statistics import Statistic, row_layers
from prunekit.structure import Chain

Scores = dict[str, Tensor]
"""One tensor of scores per parameter, of its shape; or (units,) per group of units."""


class Score(Part):
    """A pruning criterion: higher = keep. Its settings are its fields, its data are in the context.

    Scores of weights work on everything: a shape pools them into those of units.

    Attributes:
        needs: the statistics that the score is computed from.
    """

    needs: ClassVar[tuple[Statistic, ...]] = ()

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """Refuse a model that cannot be scored, before anything is done to it.

        Args:
            model: the network, without wrappers.
            chain: it as a chain, where units are counted.
            names: the groups of units, or the parameters, that are to be pruned.

        Raises:
            InputError, ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, context: StepContext) -> Scores:
        """The score of every weight, or of every unit."""


class RowScore(Score):
    """What looks at what a layer's rows of weights are multiplied with."""

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """Only linear and convolution layers have rows.

        Raises:
            ModelError: naming another one.
        """
        if chain is None:
            row_layers(model, names)
