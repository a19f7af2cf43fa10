"""Repair: what is done to the survivors at once, with no gradient step."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import nn

from prunekit.masks import Masks
from prunekit.settings import Part
from prunekit.statistics import Found, Statistic


class Repair(Part):
    """Changes the weights that are left so that less is lost."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The statistics that the repair is computed from; none by default."""
        return ()

    @abstractmethod
    def __call__(self, model: nn.Module, masks: Masks, found: Found) -> None:
        """Change the model's surviving weights in place; the removed ones are zero already."""


class NoRepair(Repair):
    """The survivors stay as they are."""

    name: ClassVar[str] = "none"

    def __call__(self, model: nn.Module, masks: Masks, found: Found) -> None:
        """Nothing."""
        return
