"""One run of a network whose units can be switched off and weighted, on any network and faster on a chain."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from prunekit.graph import Coupled
from prunekit.graph.chain import Chain
from prunekit.units.loss_delta import LossDelta

BUDGET_BYTES = 256 * 2**20
"""Default for the memory that one call may use for activations."""

# a chunk of examples: large enough for efficient products of matrices, small enough for the shared cache
_CHUNK_BYTES = 32 * 2**20

Structure = Chain | Coupled
"""Units of a network: those of a chain of layers, or coupled groups of any network."""


class Runner(ABC):
    """Runs a network on chunks of examples, in evaluation mode; the network is not changed.

    Attributes:
        sizes: the number of units of each group, by name, front to back.
        names: the groups that will be asked for, front to back.
        bytes_per_example: what a run needs for one example.
    """

    sizes: Mapping[str, int]
    names: tuple[str, ...]
    bytes_per_example: int

    @abstractmethod
    def run(self, inputs: Any, kept: Mapping[str, Tensor]) -> Run:
        """The network on a chunk of examples.

        Args:
            inputs: n examples.
            kept: by group (units,) booleans, False for units that are off; True where there are none.
        """

    @abstractmethod
    def evaluating(self) -> AbstractContextManager[None]:
        """Evaluation mode for as long as the network is run."""

    def chunks(self, examples: int, budget_bytes: int) -> Iterator[slice]:
        """Slices of the examples whose runs fit the budget, of equal sizes but for the last."""
        at_once = max(1, min(budget_bytes // 2, _CHUNK_BYTES) // self.bytes_per_example)
        parts = -(-examples // at_once)
        at_once = -(-examples // parts)  # even parts
        for start in range(0, examples, at_once):
            yield slice(start, min(start + at_once, examples))


class Run(ABC):
    """The network with the units that are left, on n examples, and what becomes of it without one of them.

    Attributes:
        outputs: (n, ...) the network's outputs.
        kept: by group (units,) booleans, the caller's to change together with `remove`.
        sizes: the number of units of each group.
        names: the groups that will be asked for.
    """

    outputs: Tensor
    kept: Mapping[str, Tensor]
    sizes: Mapping[str, int]
    names: tuple[str, ...]

    @abstractmethod
    def off(self, name: str, units: Tensor, judge: LossDelta, budget_bytes: int) -> Tensor:
        """(C,) float64: the change of the error, summed over the examples, without each of the units (C,)."""

    @abstractmethod
    def weighted(
        self, name: str, units: Tensor, strength: Tensor, judge: LossDelta, budget_bytes: int
    ) -> Tensor:
        """(C,) float64: the same where each unit has the gain 1 - strength; strength: (C,)."""

    @abstractmethod
    def derivatives(
        self, names: Sequence[str], judge: LossDelta, budget_bytes: int, *, second: bool
    ) -> dict[str, tuple[Tensor, Tensor | None]]:
        """By group (units,) float64: dE/dgain and, if `second`, d2E/dgain2, summed over the examples."""

    @abstractmethod
    def remove(self, name: str, unit: int) -> None:
        """Bring the run up to date after a unit was switched off in `kept`."""

    def changes(self, name: str, judge: LossDelta, budget_bytes: int) -> Tensor:
        """(units,) float64: the change of the error, summed over the examples, without each unit that is
        still kept; NaN for the others."""
        units = torch.arange(self.sizes[name], device=self.outputs.device)
        found = torch.full((len(units),), torch.nan, dtype=torch.float64, device=units.device)
        if name in self.kept:
            units = units[self.kept[name].to(units.device)]
        if len(units):
            found[units] = self.off(name, units, judge, budget_bytes)
        return found
