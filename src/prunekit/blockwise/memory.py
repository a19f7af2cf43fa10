"""The memory that pruning block by block takes, worked out before it begins."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from prunekit.blockwise.block_network import BlockNetwork
from prunekit.errors import InputError
from prunekit.measure.human import human_bytes
from prunekit.recipe import Recipe

SINGLE = 4
"""Bytes of a value of single precision, in which blocks are computed."""

MATRICES = 4
"""Square matrices of a layer's inputs at a time where second order is needed: the Gram matrix in double
precision, and as much again for its inverse or factor."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak, by what they are for.

    Attributes:
        block: the largest block's values, and a copy that puts it back if something fails.
        masks: what is kept of it, and its scores.
        matrices: of the inputs of its layers, for repairs and selections of second order.
        stream: the activations of the calibration set before and behind a block.
        passing: what one sequence takes on its way through a block.
    """

    block: int
    masks: int
    matrices: int
    stream: int
    passing: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(getattr(self, each.name) for each in fields(self))

    def check(self, limit: int | None) -> None:
        """InputError, with the sum, if it is more than a limit in bytes, or more than is free by default."""
        free = free_memory() if limit is None else limit
        if free is not None and self.total > free:
            terms = " + ".join(f"{human_bytes(getattr(self, f.name))} {f.name}" for f in fields(self))
            there = "are free" if limit is None else "are allowed (memory)"
            raise InputError(
                f"pruning block by block takes {human_bytes(self.total)} ({terms}), but {human_bytes(free)} "
                f"{there}: fewer or shorter sequences take less"
            )


def needed(network: BlockNetwork, recipe: Recipe, sequences: int, length: int, width: int) -> MemoryNeed:
    """What a recipe takes for so many sequences of a length, in a stream of this width."""
    blocks = [_layers(block) for block in network.blocks]
    values = max(sum(value.numel() for value in block.parameters()) for block in network.blocks)
    squares = max((sum(inputs**2 for inputs, _ in layers) for layers in blocks), default=0)
    widest = max((max(layer) for layers in blocks for layer in layers), default=width)
    second_order = any(getattr(part, "damp", None) is not None for part in recipe.parts.values())
    return MemoryNeed(
        block=2 * SINGLE * values,
        masks=(SINGLE + 1) * values,
        matrices=MATRICES * SINGLE * squares if second_order else 0,
        stream=2 * SINGLE * sequences * length * width,
        passing=SINGLE * length * (8 * widest + 2 * length),
    )


def _layers(block: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of each matrix."""
    return [(value.shape[1], value.shape[0]) for value in block.parameters() if value.dim() == 2]


def free_memory() -> int | None:
    """Bytes that the system can still give; None where it does not say."""
    try:
        lines: Iterable[str] = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
