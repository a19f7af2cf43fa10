"""The memory that pruning block by block takes, worked out before it begins."""

from __future__ import annotations

import ctypes
import gc
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from prunekit.blockwise.block_network import BlockNetwork
from prunekit.blockwise.text_activations import Medium
from prunekit.errors import InputError
from prunekit.measure.human import human_bytes
from prunekit.recipe import Recipe

SINGLE, DOUBLE = 4, 8
"""Bytes of a value of the precision in which blocks are computed, and in which layers are solved."""

MATRICES = 6
"""Square matrices of a layer's inputs at a time while it is solved: damped, factorised and inverted, each
with what it is worked out from."""

ROWS = 5
"""Times the weights of a layer in double precision while they are ranked or solved."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak, by what they are for.

    Attributes:
        block: the largest block's values in single precision.
        copies: of it: to put it back if a repair fails, or, if that is more, what is written, or what proves
            that a block without units computes the same.
        masks: what is kept of it, before and after.
        solving: the scores of its largest layer, or its weights while they are solved, and what the solver
            takes for rows that go together.
        matrices: of the inputs of its layers, for repairs and selections of second order.
        stream: the activations before and behind a block: of the calibration set, or of one sequence where
            they are kept on disk.
        passing: what one sequence takes on its way through a block.
    """

    block: int
    copies: int
    masks: int
    solving: int
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
                f"{there}: fewer or shorter sequences take less, or their activations on disk"
            )


def needed(
    network: BlockNetwork, recipe: Recipe, sequences: int, length: int, width: int, activations: Medium
) -> MemoryNeed:
    """What a recipe takes for so many sequences of a length, of this width, kept there."""
    stored = max(_stored(network, number) for number in range(len(network.blocks)))
    return needed_for(network.blocks, stored, recipe, sequences, length, width, activations)


def needed_for(
    modules: Sequence[nn.Module],
    stored: int,
    recipe: Recipe,
    sequences: int,
    length: int,
    width: int,
    activations: Medium = "memory",
) -> MemoryNeed:
    """The same of blocks whose largest takes so many bytes in the files; only their shapes are looked at."""
    blocks = [matrices_of(module) for module in modules]
    values = max(sum(value.numel() for value in module.parameters()) for module in modules)
    layers = [layer for layers in blocks for layer in layers]
    largest = max((inputs * outputs for inputs, outputs in layers), default=0)
    widest = max((max(layer) for layer in layers), default=width)
    in_turn = recipe.order != "all"
    second_order = any(getattr(part, "damp", None) is not None for part in recipe.parts.values()) or any(
        need.of_pairs for need in recipe.needs
    )
    # of blocks that lose units one from before, and that of the proof with its gradients in double precision
    proof = (SINGLE + 2 * DOUBLE) * values if recipe.granularity.level == "units" else 0
    inputs = max((inputs for inputs, _ in layers), default=0)
    squares = [[n**2 for n, _ in each] or [0] for each in blocks]
    measured = max(max(each) if in_turn else sum(each) for each in squares)
    working = (part.working_bytes(n, m) for part in recipe.parts.values() for m, n in layers)
    return MemoryNeed(
        block=SINGLE * values,
        # tensors that are written are laid out as bytes, and these once more as a file
        copies=max(SINGLE * values if recipe.repair.changes else 0, 2 * stored, proof),
        masks=2 * values,
        solving=ROWS * DOUBLE * largest + max(working, default=0),
        # sums over the examples, and the matrices that come of them
        matrices=DOUBLE * (2 * measured + MATRICES * inputs**2) if second_order else 0,
        # on disk but for the sequence that is looked at
        stream=2 * SINGLE * (sequences if activations == "memory" else 1) * length * width,
        passing=SINGLE * length * (8 * widest + 2 * length),
    )


def _stored(network: BlockNetwork, block: int) -> int:
    """Bytes of a block's values in the files."""
    sizes = network.shards.sizes(network.keys_of(block).values()).values()
    return sum(dtype.itemsize * math.prod(shape) for shape, dtype in sizes)


def give_back_memory() -> None:
    """Let the system have what nothing refers to any more.

    A session of a pruning and its loop refer to each other, and with them masks and activations wait for
    Python to look for such circles, which it does by the number of objects, not by their size. The C library
    (glibc) keeps what is free between pieces that are not.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def matrices_of(block: nn.Module) -> list[tuple[int, int]]:
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
