"""The memory that pruning block by block takes, worked out before it begins."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from torch import nn

from prunekit.blockwise.block_network import BlockNetwork
from prunekit.blockwise.text_activations import Medium
from prunekit.errors import InputError
from prunekit.graph.proof import HELD
from prunekit.graph.rows import inputs_first
from prunekit.measure.human import human_bytes
from prunekit.parts.allocation import SummaryAllocation
from prunekit.recipe import Recipe
from prunekit.statistics import Statistic

SINGLE, DOUBLE = 4, 8
"""Bytes of a value of the precision in which blocks are computed, and in which layers are solved."""


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes at the peak, by what they are for: what is there all the time, and the largest of the others.

    Attributes:
        block: the largest block's values, in single precision at least.
        copy: of them, to put the block back if a repair fails.
        masks: what is kept of it, before and after.
        stream: the activations before and behind it: of the calibration set, or of one sequence where they
            are kept on disk.
        embedding: what turns token numbers into activations, before the first block.
        passing: what one sequence takes on its way through a block.
        measuring: sums over the inputs of layers, rows that wait to be summed up, and a sequence that passes.
        differentiating: for scores by gradients, those of the block's weights, their sums, and what a
            sequence leaves in the block for the way back; or what is outside of the blocks, with the logits
            of a sequence.
        solving: scores, and what scores, selection and repair of the recipe take for its largest layer, and
            matrices of the inputs of its layers.
        proving: what shows that a block without units computes the same, with gradients in double precision,
            on one sequence.
        writing: the values in the precision of the files, where that is another.
    """

    block: int
    copy: int
    masks: int
    stream: int
    embedding: int
    passing: int
    measuring: int
    differentiating: int
    solving: int
    proving: int
    writing: int

    @property
    def total(self) -> int:
        """What is there all the time, and the largest of what comes one after the other."""
        return sum(self._named(_ALWAYS).values()) + max(self._named(_IN_TURN).values())

    @property
    def arithmetic(self) -> str:
        """The terms of the sum."""
        stages = self._named(_IN_TURN)
        largest = max(stages, key=lambda name: stages[name])
        terms = self._named(_ALWAYS) | {largest: stages[largest]}
        others = ", ".join(name for name in stages if name != largest)
        sizes = " + ".join(f"{human_bytes(size)} {name}" for name, size in terms.items())
        return f"{sizes}, more than {others}"

    def check(self, limit: int | None) -> None:
        """InputError, with the sum, if it is more than a limit in bytes, or more than is free by default."""
        free = free_memory() if limit is None else limit
        if free is not None and self.total > free:
            there = "are free" if limit is None else "are allowed (memory)"
            raise InputError(
                f"pruning block by block takes {human_bytes(self.total)} ({self.arithmetic}), but "
                f"{human_bytes(free)} {there}: fewer or shorter sequences take less, or their activations on "
                "disk"
            )

    def _named(self, names: Iterable[str]) -> dict[str, int]:
        return {name: getattr(self, name) for name in names}


_ALWAYS = ("block", "copy", "masks", "stream")
_IN_TURN = tuple(each.name for each in fields(MemoryNeed) if each.name not in _ALWAYS)


def needed(
    network: BlockNetwork, recipe: Recipe, sequences: int, length: int, width: int, activations: Medium
) -> MemoryNeed:
    """What a recipe takes for so many sequences of a length, of this width, kept there."""
    stored = max(_stored(network, number) for number in range(len(network.blocks)))
    return needed_for(network.model, network.blocks, stored, recipe, sequences, length, width, activations)


def needed_for(
    model: nn.Module,
    blocks: Sequence[nn.Module],
    stored: int,
    recipe: Recipe,
    sequences: int,
    length: int,
    width: int,
    activations: Medium = "memory",
) -> MemoryNeed:
    """The same of a network whose largest block takes so many bytes in the files; only shapes are looked at.

    Args:
        model: the network.
        blocks: of it.
        stored: bytes of the largest block in the files.
        recipe: as of `prune_blocks`.
        sequences: of the calibration text.
        length: tokens of each.
        width: of the stream of activations.
        activations: where these are kept.
    """
    values = max(sum(value.numel() for value in block.parameters()) for block in blocks)
    block = max(SINGLE * values, stored)
    halved = stored if stored < block else 0  # of files in half precision, which are read and written apart
    layers = [matrices_of(each) for each in blocks]
    widest = max((max(layer) for each in layers for layer in each), default=width)
    # an MLP with its activation function has four tensors of its width at a time; attention has queries and
    # keys before and behind their rotation, values, what comes of them, and a mask
    way_back = length * (8 * widest + 16 * width + 2 * length)  # numbers that a sequence leaves for it
    laid_out = SINGLE * length**2 * _laid_out_heads(model)
    passing = SINGLE * length * (max(4 * widest + 4 * width, 10 * width) + length) + 2 * laid_out
    inside = {id(each) for one in blocks for each in one.modules()}
    modules = [each for each in model.modules() if id(each) not in inside]
    embeddings = [each for each in modules if isinstance(each, nn.Embedding)]
    embedded = sum(each.weight.numel() for each in embeddings)
    words = max((each.num_embeddings for each in embeddings), default=0)
    outside = sum(value.numel() for each in modules for value in each.parameters(recurse=False))
    sequences_held = (3 if recipe.by_gradient else 2) * (sequences if activations == "memory" else 1)
    return MemoryNeed(
        block=block,
        copy=block if recipe.repair.changes else 0,
        masks=2 * values,
        stream=SINGLE * sequences_held * length * width,
        embedding=embedded * block // values + embedded * halved // values + passing,
        passing=passing,
        measuring=passing + max(_measuring(recipe, each, sequences, length) for each in layers),
        differentiating=max(
            2 * block + SINGLE * way_back + 6 * laid_out,
            outside * (block + halved) // values + 4 * SINGLE * length * words - block,
        )
        if recipe.by_gradient
        else 0,
        solving=_held(recipe, values) + max(_solving(recipe, each) for each in layers),
        # in double precision with gradients: a small block before and behind at a time, and a sequence
        proving=DOUBLE * ((3 if values <= HELD else 2) * values + way_back) + 6 * laid_out
        if recipe.granularity.level == "units"
        else 0,
        writing=halved,
    )


def _laid_out_heads(model: nn.Module) -> int:
    """Of how many heads attention lays out its weights (length, length) at a time, by the configuration."""
    config = getattr(model, "config", None)
    eager = getattr(config, "_attn_implementation", None) == "eager"
    return int(getattr(config, "num_attention_heads", 0)) if eager else 0


def _measuring(recipe: Recipe, layers: Sequence[tuple[int, int]], sequences: int, length: int) -> int:
    """Bytes beside those of a sequence that passes through a block of these layers."""
    inputs = [inputs for inputs, _ in layers]
    together = [[each] for each in inputs] if recipe.order != "all" else [inputs]
    # what is asked of the same rows of a layer is read from the same sums
    sharing: dict[object, list[Statistic]] = {}
    for need in recipe.needs:
        sharing.setdefault(need.rows, []).append(need)
    most = 0
    for columns in together:
        held = sum(
            max(need.held_bytes(n, length, sequences) for need in needs)
            for needs in sharing.values()
            for n in columns
        )
        taking = max(
            (need.taking_bytes(n, length, sequences) for need in recipe.needs for n in columns), default=0
        )
        # a matrix is made symmetric, and moved to another mean
        reading = sum(map(_pairs, columns)) + 2 * max(map(_pairs, columns), default=0)
        most = max(most, held + taking, held + reading if _of_pairs(recipe) else 0)
    return most


def _solving(recipe: Recipe, layers: Sequence[tuple[int, int]]) -> int:
    """Bytes of what is worked out for one layer after the other, and of what is measured of them."""
    squares = [_pairs(inputs) for inputs, _ in layers] if _of_pairs(recipe) else []
    measured = max(squares, default=0) if recipe.order != "all" else sum(squares)
    working = (
        part.working_bytes(outputs, inputs) for part in recipe.parts.values() for inputs, outputs in layers
    )
    return measured + max(working, default=0)


def _held(recipe: Recipe, values: int) -> int:
    """Bytes of the scores of all layers, where they are not worked out and forgotten one by one."""
    by_size = recipe.allocation.by_size or isinstance(recipe.allocation, SummaryAllocation)
    alone = recipe.score.by_layer and by_size and recipe.granularity.counts == "weights"
    return 0 if alone or not recipe.score.of_weights else DOUBLE * values


def _of_pairs(recipe: Recipe) -> bool:
    return any(need.of_pairs for need in recipe.needs)


def _pairs(inputs: int) -> int:
    return int(DOUBLE * inputs**2)


def _stored(network: BlockNetwork, block: int) -> int:
    """Bytes of a block's values in the files."""
    sizes = network.shards.sizes(network.keys_of(block).values()).values()
    return sum(dtype.itemsize * math.prod(shape) for shape, dtype in sizes)


def matrices_of(block: nn.Module) -> list[tuple[int, int]]:
    """(inputs, outputs) of each matrix."""
    return [
        (value.shape[0], value.shape[1]) if inputs_first(layer) else (value.shape[1], value.shape[0])
        for layer in block.modules()
        for value in layer.parameters(recurse=False)
        if value.dim() == 2
    ]


def free_memory() -> int | None:
    """Bytes that the system can still give; None where it does not say."""
    try:
        lines: Iterable[str] = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
