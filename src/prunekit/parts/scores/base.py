"""What a score is: a pure function from the weights, and what data says of them, to numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from prunekit.graph import Coupled
from prunekit.parts.base import Part
from prunekit.statistics import Found, Statistic
from prunekit.structure import Chain

Scores = dict[str, Tensor]
"""One tensor of scores per parameter, of its shape; or (units,) per group of units."""


@dataclass(frozen=True)
class Evidence:
    """What a score may look at.

    Attributes:
        weights: the parameters by full name; not to be changed.
        found: the statistics that the score asked for in `needs`.
        generator: the source of random numbers, seeded for this step.
        chain: the network as a chain of layers, where units are counted.
        coupled: coupled groups of any network, where their units are counted.
        kept: what is still kept: by group of units (units,) booleans, or masks of weights.
        layers: the module that owns each parameter, by the parameter's full name.
        pattern: (n, m) where n of every m consecutive inputs of an output stay; None for no pattern.
    """

    weights: Mapping[str, Tensor]
    found: Found = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)
    chain: Chain | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    layers: Mapping[str, nn.Module] = field(default_factory=dict)
    pattern: tuple[int, int] | None = None
    coupled: Coupled | None = None

    @property
    def of_units(self) -> bool:
        """Whether units are counted, of a chain or of coupled groups."""
        return self.chain is not None or self.coupled is not None

    @property
    def elements(self) -> Mapping[str, Tensor]:
        """What is counted, one tensor each: the weights, or the flags of the units."""
        return self.kept if self.of_units else self.weights


class Score(Part):
    """A pruning criterion: higher = keep. Its settings are its fields, its data are in `Evidence`.

    Scores of weights work on everything: a shape pools them into those of units.

    Attributes:
        needs: the statistics that the score is computed from.
    """

    needs: ClassVar[tuple[Statistic, ...]] = ()

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """Refuse a model that cannot be scored, before anything is done to it.

        Args:
            model: the network.
            chain: it as a chain, where units are counted.
            names: the groups of units, or the parameters, that are to be pruned.

        Raises:
            InputError, ModelError: naming the layer.
        """
        return

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Scores:
        """The score of every weight, or of every unit."""
