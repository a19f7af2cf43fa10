"""What a repair is, what it is told, and the one that does nothing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from prunekit.graph import Coupled
from prunekit.masks import Masks
from prunekit.parts.base import Part
from prunekit.statistics import Found, Statistic
from prunekit.structure import Chain


@dataclass(frozen=True)
class Damage:
    """What a step is about to remove.

    Attributes:
        model: the network, in which what is to be removed still has its values: a repair looks at them.
        masks: over its parameters, True = kept, as they are after the step.
        found: what was measured before the step.
        chain: the network as a chain of layers where its units are counted.
        before: what was kept before the step: by group (units,) flags of units, or masks of weights.
        kept: the same after the step.
        coupled: coupled groups of any network, where their units are counted.
    """

    model: nn.Module
    masks: Masks
    found: Found
    chain: Chain | None
    before: Mapping[str, Tensor]
    kept: Mapping[str, Tensor]
    coupled: Coupled | None = None


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
            model: the network.
            chain: it as a chain, where units are counted.
            names: the groups of units, or the parameters, that are to be pruned.

        Raises:
            ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, damage: Damage) -> None:
        """Change the model's surviving weights in place; the masks are applied afterwards."""


class NoRepair(Repair):
    """The survivors stay as they are."""

    name = "none"
    changes = False

    def __call__(self, damage: Damage) -> None:
        """Nothing."""
        return
