"""How far a pruning block by block is: what is said of it in its folder, to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunekit.blockwise.smaller_blocks import SmallerForm
from prunekit.digests import digest_of_file, read_json_with_digest, write_json_with_digest
from prunekit.errors import DataError, InputError

PROGRESS = "pruning.json"
"""In the new folder: what is done, and what it was done with."""


@dataclass(frozen=True)
class LayerSummary:
    """What an allocation that compares layers looks at of one.

    Attributes:
        summary: see `SummaryAllocation`.
        size: how many weights there are.
    """

    summary: float
    size: int


@dataclass(frozen=True)
class BlockKept:
    """What is left of a block.

    Attributes:
        kept: by layer, the weights that are not removed; or by group of units, these. Empty where the recipe
            leaves the block whole.
        total: likewise, all of them.
    """

    kept: dict[str, int]
    total: dict[str, int]

    @property
    def sparsity(self) -> float:
        """The share that is removed."""
        total = sum(self.total.values())
        return 1 - sum(self.kept.values()) / total if total else 0.0


@dataclass
class RunProgress:
    """What is done of a pruning.

    Attributes:
        folder: that it is written to.
        about: what it is done with, as plain JSON values.
        measured: of each block that was measured before the first is pruned, by layer.
        done: what is left of each block that is pruned.
        form: of the blocks, where these lose units and the first one is pruned.
        shards: the digests of the files that are written.
        streams: those of the files of activations that are gone on from: before the next block, or before all
            blocks that are not done.
        gradients: that of the file of the gradients in what the next block gives, where blocks are pruned by
            gradients.
    """

    folder: Path
    about: Mapping[str, Any]
    measured: list[dict[str, LayerSummary]] = field(default_factory=list)
    done: list[BlockKept] = field(default_factory=list)
    form: SmallerForm | None = None
    shards: dict[str, str] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    gradients: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, about: Mapping[str, Any]) -> RunProgress:
        """What an earlier run has done.

        Raises:
            InputError: if the folder holds something else.
            DataError: if a file of it is damaged.
        """
        path = folder / PROGRESS
        if not path.exists():
            # a run that was stopped in its first block leaves hidden files of activations alone
            if folder.exists() and not (
                folder.is_dir() and all(each.name.startswith(".") for each in folder.iterdir())
            ):
                raise InputError(
                    f"{folder} is not empty and holds no pruning under way: choose another folder"
                )
            return cls(folder, about)
        found = read_json_with_digest(path)
        for key, value in about.items():
            if found.get(key) != value:
                raise InputError(f"{folder} holds a pruning with another {key}: choose another folder")
        for name, digest in found["shards"].items():
            if not (folder / name).is_file() or digest_of_file(folder / name) != digest:
                raise DataError(f"{folder / name} is missing or damaged: remove {folder} and begin again")
        return cls(
            folder,
            about,
            [{name: LayerSummary(**each) for name, each in block.items()} for block in found["measured"]],
            [BlockKept(**each) for each in found["done"]],
            None if found["form"] is None else SmallerForm(**found["form"]),
            found["shards"],
            found["streams"],
            found["gradients"],
        )

    def write(self) -> None:
        """To the folder."""
        parts = {
            "measured": [{name: asdict(each) for name, each in layers.items()} for layers in self.measured],
            "done": [asdict(each) for each in self.done],
            "form": None if self.form is None else asdict(self.form),
            "shards": self.shards,
            "streams": self.streams,
            "gradients": self.gradients,
        }
        write_json_with_digest(self.folder / PROGRESS, {**self.about, **parts})
