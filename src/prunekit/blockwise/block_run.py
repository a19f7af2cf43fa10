"""One pruning block by block under way: what is common to both ways through the blocks."""

from __future__ import annotations

import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from prunekit.blockwise.allocator import give_back_memory
from prunekit.blockwise.block_call import BlockCall, BlockOnStream
from prunekit.blockwise.block_network import BlockNetwork
from prunekit.blockwise.block_targets import patterns_of_blocks
from prunekit.blockwise.run_progress import PROGRESS, BlockKept, RunProgress
from prunekit.blockwise.shards import INDEX, Shards, write_index, write_shard
from prunekit.blockwise.smaller_blocks import smaller_form, take_out, write_settings
from prunekit.blockwise.text_activations import Medium, SequenceBatches, StreamStore
from prunekit.digests import digest_of_tensors
from prunekit.errors import InputError
from prunekit.files import remove
from prunekit.folder_lock import LOCK
from prunekit.pruning.session import prune
from prunekit.recipe import Recipe
from prunekit.seeds import derive
from prunekit.task import LossFunction

FORMAT = 4
REST = 2 << 30
"""Bytes of values outside of blocks that are copied at a time."""

Inputs = Literal["pruned", "dense"]
"""What statistics are taken behind: blocks that are pruned already, or dense ones."""

Report = Callable[[int, int], None]
"""Takes how many times the text has gone through a block, and how many times it will have in the end: once
for each block, or twice where all of them are run before the first is pruned."""


class BlockwiseRun(ABC):
    """One pruning: its folder, and what is done of it."""

    def __init__(
        self,
        network: BlockNetwork,
        recipe: Recipe,
        tokens: torch.Tensor,
        out: Path,
        inputs: Inputs,
        seed: int,
        medium: Medium,
        report: Report | None,
    ) -> None:
        self._network, self._recipe, self._tokens, self._out = network, recipe, tokens, out
        self._inputs, self._seed, self._report, self._medium = inputs, seed, report, medium
        self._store = StreamStore(out, medium, len(tokens))
        self._patterns = patterns_of_blocks(network, recipe)
        self._types: dict[str, torch.dtype] = {}
        self._calls: Sequence[BlockCall] = ()
        about = {
            "format": FORMAT,
            "recipe": recipe.to_dict(),
            "tokens": digest_of_tensors({"tokens": tokens}),
            "source": network.shards.samples(),
            "blocks": network.name,
            "inputs": inputs,
            "seed": seed,
        }
        self._found = _content(out / PROGRESS)
        self._progress = RunProgress.of(out, about)

    def go_on(self, calls: Sequence[BlockCall]) -> list[BlockKept]:
        """The blocks that are not done, then what is outside of them, then the index.

        It is called by who has locked the folder, which may have changed since it was looked at.
        """
        self._calls = calls
        if _content(self._out / PROGRESS) != self._found:
            raise InputError(
                f"another run has been at work in {self._out} in between: the same call goes on from there"
            )
        self._prune_blocks()
        self._told()
        self._finish(self._progress.shards)
        self._store.clear()
        self._remove_leftovers()
        (self._out / LOCK).unlink(missing_ok=True)  # a network lies here now
        return self._progress.done

    def _remove_leftovers(self) -> None:
        """Forget the temporary files of a run that was killed, each named after what it would have become."""
        for path in list(self._out.iterdir()):
            if not path.name.startswith("."):
                for temporary in self._out.glob(f".{escape(path.name)}.*"):
                    remove(temporary)

    @abstractmethod
    def _prune_blocks(self) -> None:
        """Prune the blocks that are not done, one after the other, and write each."""

    @abstractmethod
    def _passes(self) -> tuple[int, int]:
        """How often the text has gone through a block, and how often it will have in the end."""

    def _told(self) -> None:
        if self._report is not None:
            self._report(*self._passes())

    def _on_stream(self, number: int, block: nn.Module | None = None) -> BlockOnStream:
        """A block, or a copy of it, as a network of its own."""
        block = self._network.blocks[number] if block is None else block
        return BlockOnStream(block, self._calls[number], self._network.block_name(number)).eval()

    def _of_block(self, number: int, changes: Mapping[str, Any]) -> Recipe | None:
        """The recipe as that of a block, which sees all sequences; None where it leaves the block whole."""
        patterns = self._patterns[number]
        if patterns is None:
            return None
        own = {"targets": patterns.targets, "ignore": patterns.ignore, "calibration": len(self._tokens)}
        return self._recipe.model_copy(update={**own, **changes})

    def _block_seed(self, number: int) -> int:
        return derive(self._seed, "block", str(number))

    def _pruned(
        self,
        number: int,
        block: BlockOnStream,
        batches: SequenceBatches,
        changes: Mapping[str, Any],
        loss: LossFunction | None = None,
    ) -> BlockKept:
        """Prune a block in place; units are taken out.

        Args:
            number: of the block.
            block: with its values.
            batches: the activations before it.
            changes: of the recipe.
            loss: of the activations behind it.
        """
        recipe, seed = self._of_block(number, changes), self._block_seed(number)
        if recipe is None:
            return BlockKept({}, {})
        pruned = prune(block, recipe, batches, seed=seed, loss=loss)
        prefix = f"{block.block_name}."
        flags = {name.removeprefix(prefix): each for name, each in pruned.kept.items()}
        if pruned.coupled is not None:
            self._take_out(number, block, pruned.kept, batches.streams[0])
        return BlockKept(
            {name: int(each.sum()) for name, each in flags.items()},
            {name: each.numel() for name, each in flags.items()},
        )

    def _take_out(
        self, number: int, block: BlockOnStream, kept: Mapping[str, torch.Tensor], stream: torch.Tensor
    ) -> None:
        """Make a block smaller, to the form of the first that was pruned."""
        take_out(block, kept, stream)
        if self._progress.form is None:
            self._progress.form = smaller_form(self._network, number, block, stream)
        self._progress.form.check(block.wrapped)

    def _write_block(self, number: int) -> None:
        give_back_memory()
        if not self._progress.shards:  # a folder that holds anything says what it is
            self._progress.write()
        block, keys = self._network.blocks[number], self._network.keys_of(number)
        values = block.state_dict()
        tensors = {key: values[name].to(self._types[name]) for name, key in keys.items()}
        self._progress.shards[_file(number)] = write_shard(self._out / _file(number), tensors)

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
        sizes = Shards(self._out, file_of).sizes(file_of).values()
        size = sum(dtype.itemsize * math.prod(shape) for shape, dtype in sizes)
        for path in sorted(network.shards.folder.iterdir()):
            beside = path.suffix in (".json", ".txt", ".model", ".jinja") and path.name not in (
                INDEX,
                PROGRESS,
            )
            if beside and path.is_file():  # a link, too: the cache of a hub is made of them
                shutil.copyfile(path, self._out / path.name)
        if self._progress.form is not None and self._progress.form.changes:
            name = "config.json"
            write_settings(network.shards.folder / name, self._out / name, self._progress.form.changes)
        write_index(self._out, file_of, size)


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


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None
