"""What a repair is, what it is told, and the one that does nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

from prunekit.parts.base import Part
from prunekit.parts.context import StepContext
from prunekit.statistics import Statistic
from prunekit.structure import Chain


class Repair(Part):
    """Changes the weights that are left so that less is lost.

    Attributes:
        needs: the statistics that the repair is computed from.
        changes: whether it changes anything at all.
    """

    changes: ClassVar[bool] = True
    needs: ClassVar[tuple[Statistic, ...]] = ()

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """Refuse a model that cannot be repaired, before anything is done to it.

        Args:
            model: the network, without wrappers.
            chain: it as a chain, where units are counted.
            names: the groups of units, or the parameters, that are to be pruned.

        Raises:
            ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, context: StepContext) -> None:
        """Change the model's surviving weights in place; the masks are applied afterwards."""


class NoRepair(Repair):
    """The survivors stay as they are."""

    name = "none"
    changes = False

    def __call__(self, context: StepContext) -> None:
        """Nothing."""
        return
