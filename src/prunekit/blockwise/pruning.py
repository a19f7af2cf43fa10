"""Pruning of a network that is larger than memory: block after block, from its files to new ones."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.blockwise.block_network import BlockCall, BlockNetwork, BlockOnStream, causal_model
from prunekit.blockwise.memory import MemoryNeed, give_back_memory, needed
from prunekit.blockwise.shards import INDEX, Shards, write_index, write_shard
from prunekit.digests import (
    digest_of_file,
    digest_of_tensors,
    read_json_with_digest,
    read_tensors,
    write_json_with_digest,
    write_tensors,
)
from prunekit.errors import DataError, InputError, naming
from prunekit.files import remove
from prunekit.pruning.session import prune
from prunekit.recipe import Recipe
from prunekit.seeds import derive
from prunekit.settings import checked_seed

FORMAT = 1
PROGRESS = "pruning.json"
"""In the new folder: what is done, and what it was done with."""

STREAM = ".stream-{}.safetensors"
"""In the new folder, until it is whole: the activations before a block."""

REST = 2 << 30
"""Bytes of values outside of blocks that are copied at a time."""

Inputs = Literal["pruned", "dense"]
"""What statistics are taken behind: blocks that are pruned already, or dense ones."""

Report = Callable[[int, int], None]
"""Takes the blocks that are done, and how many there are."""


@dataclass(frozen=True)
class BlockKept:
    """What is left of a block.

    Attributes:
        kept: by layer, the weights that are not removed.
        total: by layer, all of them.
    """

    kept: dict[str, int]
    total: dict[str, int]

    @property
    def sparsity(self) -> float:
        """The share that is removed."""
        return 1 - sum(self.kept.values()) / max(sum(self.total.values()), 1)


def prune_blocks(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    out: Path | str,
    *,
    inputs: Inputs = "pruned",
    blocks: str | None = None,
    model: nn.Module | None = None,
    memory: int | None = None,
    seed: int = 0,
    report: Report | None = None,
) -> list[BlockKept]:
    """Prune a network in safetensors files block by block, and write files of the same form.

    A block is read, given the activations of the calibration sequences, pruned by the recipe as a network
    of its own, and written; then the activations behind it are worked out, and it is forgotten. Memory grows
    with the block and the activations, not with the depth. What is outside of the blocks (embeddings, head)
    stays. An interrupted run goes on behind the last block that was written, to the same files.

    Args:
        source: a folder of transformers with its config, or of `model`'s values alone.
        recipe: removes single weights, each layer by itself, without training: `wanda`, `ria`, `sparsegpt`,
            `alps`, `exact_layer_obs` with an allocation of its own for each layer, N:M patterns.
        tokens: (sequences, length) token numbers of the calibration text, without padding.
        out: the new folder.
        inputs: what a layer's statistics are taken of: behind the blocks that are `pruned` already, as Wanda
            and SparseGPT are published, or behind the `dense` ones, as in pruning the whole network at once.
        blocks: the name of the list of blocks, such as `model.layers`; by default the longest list.
        model: the network, made within `without_values()`, where it is not a causal model of transformers.
        memory: bytes that may be taken; what is free by default.
        seed: of everything random.
        report: told how far it is.

    Returns:
        What is left of each block.

    Raises:
        InputError: before anything is written: a recipe that needs more than one block at a time, a folder
            that holds something else, too little memory, with the sum.
        DataError: if a file is damaged.

    Source: the loop of SparseGPT (arXiv 2301.00774) and Wanda (arXiv 2306.11695).
    """
    _check_recipe(recipe)
    if inputs not in ("pruned", "dense"):
        raise InputError(f"inputs = {inputs!r}: must be 'pruned' or 'dense'")
    if tokens.dim() != 2 or tokens.is_floating_point() or not tokens.numel():
        raise InputError(f"tokens: must be whole numbers (sequences, length), not {list(tokens.shape)}")
    source, out, seed = Path(source), Path(out), checked_seed(seed)
    shards = Shards.of(source)
    network = BlockNetwork(causal_model(source) if model is None else model, shards, blocks)
    run = _BlockwiseRun(network, recipe, tokens, out, inputs, seed)
    begun = run.begun()
    streams, calls = network.streams(tokens)
    sequences, length, width = len(streams), *streams[0].shape[1:]
    needed(network, recipe, sequences, length, width).check(memory)
    return run.go_on(begun, streams, calls, report or (lambda done, count: None))


def memory_needed(
    source: Path | str,
    recipe: Recipe,
    tokens: Tensor,
    *,
    blocks: str | None = None,
    model: nn.Module | None = None,
) -> MemoryNeed:
    """The memory that `prune_blocks` takes at its peak, with what each part of it is for."""
    source = Path(source)
    network = BlockNetwork(causal_model(source) if model is None else model, Shards.of(source), blocks)
    streams, _ = network.streams(tokens[:1])
    return needed(network, recipe, len(tokens), *streams[0].shape[1:])


def _check_recipe(recipe: Recipe) -> None:
    """InputError for what needs more than one block at a time."""
    reasons = {
        f"it removes {recipe.granularity.counts}": recipe.granularity.counts != "weights",
        "it trains": recipe.trains,
        f"the allocation {recipe.allocation.name!r} compares layers": not recipe.allocation.local,
        f"the stop {recipe.stop.name!r} measures the whole network": recipe.stop.needs_data,
        f"the quantize {recipe.quantize.name!r} gives values to the whole network": recipe.quantize.changes,
        "a statistic needs the loss": any(need.needs_loss or need.takes_loss for need in recipe.needs),
    }
    for reason, holds in reasons.items():
        if holds:
            raise InputError(f"the recipe cannot prune block by block: {reason}")


class _BlockwiseRun:
    """One pruning: its folder, and what is done of it."""

    def __init__(
        self, network: BlockNetwork, recipe: Recipe, tokens: Tensor, out: Path, inputs: Inputs, seed: int
    ) -> None:
        self._network, self._recipe, self._out = network, recipe, out
        self._inputs, self._seed = inputs, seed
        self._types: dict[str, torch.dtype] = {}
        self._about = {
            "format": FORMAT,
            "recipe": recipe.to_dict(),
            "tokens": digest_of_tensors({"tokens": tokens}),
            "source": network.shards.sizes_of_files(),
            "blocks": network.name,
            "inputs": inputs,
            "seed": seed,
        }

    def begun(self) -> dict[str, Any]:
        """What an earlier run has done; InputError if the folder holds something else."""
        path = self._out / PROGRESS
        if not path.exists():
            if self._out.exists() and (not self._out.is_dir() or any(self._out.iterdir())):
                raise InputError(
                    f"{self._out} is not empty and holds no pruning under way: choose another folder"
                )
            return {"done": [], "shards": {}}
        found = read_json_with_digest(path)
        for name, digest in found["shards"].items():
            if not (self._out / name).is_file() or digest_of_file(self._out / name) != digest:
                raise DataError(
                    f"{self._out / name} is missing or damaged: remove {self._out} and begin again"
                )
        for key, value in self._about.items():
            if found.get(key) != value:
                raise InputError(f"{self._out} holds a pruning with another {key}: choose another folder")
        return found

    def go_on(
        self, begun: dict[str, Any], streams: list[Tensor], calls: Sequence[BlockCall], report: Report
    ) -> list[BlockKept]:
        """The blocks that are not done, then what is outside of them, then the index."""
        done = [BlockKept(**each) for each in begun["done"]]
        shards: dict[str, str] = begun["shards"]
        if done and len(done) < len(self._network.blocks):
            streams = self._read_streams(len(done), begun["stream"])
        for number in range(len(done), len(self._network.blocks)):
            report(number, len(self._network.blocks))
            with naming(f"{self._network.name}.{number}"):
                kept, streams = self._prune(number, streams, calls[number])
            give_back_memory()
            done.append(kept)
            shards[_file(number)] = self._write_block(number)
            self._network.empty(number)
            give_back_memory()
            last = number + 1 == len(self._network.blocks)
            stream = None if last else self._write_streams(number + 1, streams)
            self._write_progress(done, shards, stream)
            remove(self._out / STREAM.format(number))
        report(len(done), len(self._network.blocks))
        self._finish(shards)
        return done

    def _prune(self, number: int, streams: list[Tensor], call: BlockCall) -> tuple[BlockKept, list[Tensor]]:
        self._types = self._network.load(number)
        block = BlockOnStream(self._network.blocks[number], call).eval()
        dense = _passed(block, streams) if self._inputs == "dense" else []
        batches = [(stream, torch.zeros(len(stream), dtype=torch.long)) for stream in streams]
        recipe = self._recipe.model_copy(update={"calibration": len(streams)})
        pruned = prune(block, recipe, batches, seed=derive(self._seed, "block", str(number)))
        masks = {name.removeprefix("block."): mask for name, mask in pruned.masks.items()}
        kept = BlockKept(
            {name: int(mask.sum()) for name, mask in masks.items()},
            {name: mask.numel() for name, mask in masks.items()},
        )
        return kept, dense or _passed(block, streams)

    def _write_block(self, number: int) -> str:
        block, keys = self._network.blocks[number], self._network.keys_of(number)
        values = block.state_dict()
        tensors = {key: values[name].to(self._types[name]) for name, key in keys.items()}
        return write_shard(self._out / _file(number), tensors)

    def _write_streams(self, number: int, streams: list[Tensor]) -> str:
        return write_tensors(
            self._out / STREAM.format(number), {str(place): each for place, each in enumerate(streams)}
        )

    def _read_streams(self, number: int, digest: str) -> list[Tensor]:
        found, _ = read_tensors(self._out / STREAM.format(number), digest)
        return [found[str(place)] for place in range(len(found))]

    def _write_progress(self, done: list[BlockKept], shards: dict[str, str], stream: str | None) -> None:
        parts = {"done": [vars(each) for each in done], "shards": shards, "stream": stream}
        write_json_with_digest(self._out / PROGRESS, {**self._about, **parts})

    def _finish(self, shards: dict[str, str]) -> None:
        """Copy what is outside of the blocks, and the files beside the values; the index comes last."""
        network = self._network
        portions = {f"model-rest-{n:05}.safetensors": names for n, names in enumerate(_portions(network))}
        for number in range(len(network.blocks)):
            portions[_file(number)] = sorted(network.keys_of(number).values())
        for name, keys in portions.items():
            if name not in shards:
                write_shard(self._out / name, network.shards.read(keys))
        file_of = {key: name for name, keys in portions.items() for key in keys}
        sizes = network.shards.sizes(file_of).values()
        size = sum(dtype.itemsize * math.prod(shape) for shape, dtype in sizes)
        for path in sorted(network.shards.folder.iterdir()):
            other = path.suffix in (".json", ".txt", ".model", ".jinja") and path.name not in (
                INDEX,
                PROGRESS,
            )
            if other and path.is_file() and not path.is_symlink():
                shutil.copyfile(path, self._out / path.name)
        write_index(self._out, file_of, size)


def _passed(block: nn.Module, streams: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [block(stream) for stream in streams]


def _file(number: int) -> str:
    return f"model-block-{number:05}.safetensors"


def _portions(network: BlockNetwork) -> list[list[str]]:
    """The names outside of the blocks, so many at a time as fit into `REST` bytes."""
    names = sorted(network.keys_of_rest())
    portions: list[list[str]] = [[]]
    size = 0
    for name, (shape, dtype) in network.shards.sizes(names).items():
        own = dtype.itemsize * math.prod(shape)
        if portions[-1] and size + own > REST:
            portions.append([])
            size = 0
        portions[-1].append(name)
        size += own
    return [each for each in portions if each]
