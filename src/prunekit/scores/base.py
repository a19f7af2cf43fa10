"""What a score is: a pure function from the weights, and what data says of them, to numbers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunekit.settings import Part
from prunekit.statistics import Found, Statistic

Scores = dict[str, Tensor]
"""One tensor of scores per parameter name, of the parameter's shape."""


@dataclass(frozen=True)
class Evidence:
    """What a score may look at.

    Attributes:
        weights: the parameters by full name; not to be changed.
        found: the statistics that the score asked for in `needs`.
        generator: the source of random numbers, seeded for this step.
    """

    weights: Mapping[str, Tensor]
    found: Found = field(default_factory=dict)
    generator: torch.Generator = field(default_factory=torch.Generator)


class Score(Part):
    """A pruning criterion: higher = keep. Its settings are its fields, its data are in `Evidence`."""

    @property
    def needs(self) -> tuple[Statistic, ...]:
        """The statistics that the score is computed from; none by default."""
        return ()

    @abstractmethod
    def __call__(self, evidence: Evidence) -> Scores:
        """The score of every weight."""
