"""All that is saved of a network, and files that hold it, whatever their form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from prunekit.saving.description import Description

Part = Literal["weights", "graph", "description"]


@dataclass(frozen=True)
class Contents:
    """All that is saved of a network.

    Attributes:
        description: what is said of it.
        tensors: by name its parameters and buffers, each once, on the CPU; of pruned ones the mask and the
            values that are kept; buffers that its state leaves out; the constants of its graphs.
        graph: its graphs as JSON values, if it is a network of such.
    """

    description: Description
    tensors: Mapping[str, Tensor]
    graph: Mapping[str, Any] | None


class SavedFiles(ABC):
    """Files that hold what was saved of a network.

    Attributes:
        path: the folder, or the file.
        description: what is said of the network, checked.
        described_in: how messages call the place where that is said.
    """

    path: Path
    description: Description
    described_in: str

    @property
    @abstractmethod
    def holds_graph(self) -> bool:
        """Whether it is an exported graph, which needs no model."""

    @abstractmethod
    def named(self, part: Part) -> str:
        """How messages call a part of it."""

    @abstractmethod
    def tensors(self, *, mapped: bool = False) -> Mapping[str, Tensor]:
        """See `Contents`.

        Args:
            mapped: whether the tensors may lie in the file itself; see `read_tensors`.

        Raises:
            DataError: if they are missing, damaged or truncated, or have a name that cannot be printed or a
                dtype that is not in `DTYPES`.
        """

    @abstractmethod
    def graph(self) -> Mapping[str, Any]:
        """The graphs as JSON values, not looked into yet.

        Raises:
            DataError: if they are missing, damaged or truncated.
        """

    def misfit(self, part: Part) -> str:
        """How messages begin where a part and the description disagree."""
        return f"{self.named(part)} does not fit {self.described_in}"

    def contents(self) -> Contents:
        """All of it, in memory.

        Raises:
            DataError: as `tensors` and `graph`.
        """
        said = {name: getattr(self.description, name) for name in Description.model_fields}
        graph = self.graph() if self.holds_graph else None
        return Contents(Description.model_construct(**said), self.tensors(), graph)
