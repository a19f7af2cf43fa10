"""One pruning block by block under way: block after block, then what is outside of them."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.allocator import give_back_memory
from prunekit.blockwise.block_network import BlockCall, BlockNetwork, BlockOnStream
from prunekit.blockwise.run_progress import PROGRESS, BlockKept, LayerSummary, RunProgress
from prunekit.blockwise.shards import INDEX, Shards, write_index, write_shard
from prunekit.blockwise.smaller_blocks import smaller_form, take_out, write_settings
from prunekit.blockwise.text_activations import Medium, SequenceBatches, StreamStore
from prunekit.digests import digest_of_tensors
from prunekit.errors import naming
from prunekit.masks import Masks
from prunekit.parts.allocation import PerLayer, Recorded, SummaryAllocation
from prunekit.parts.context import StepContext
from prunekit.parts.schedule import AllocationDecides, Step
from prunekit.pruning.session import Session, prune
from prunekit.recipe import Recipe
from prunekit.seeds import derive

FORMAT = 3
REST = 2 << 30
"""Bytes of values outside of blocks that are copied at a time."""

Inputs = Literal["pruned", "dense"]
"""What statistics are taken behind: blocks that are pruned already, or dense ones."""

Report = Callable[[int, int], None]
"""Takes how many times the text has gone through a block, and how many times it will have in the end: once
for each block, or twice where all of them are measured before the first is pruned."""

Finding = TypeVar("Finding")

Worked = tuple[Finding, Sequence[Tensor]]
"""What is found of a block, and the activations before the next one."""


class BlockwiseRun:
    """One pruning: its folder, and what is done of it."""

    def __init__(
        self,
        network: BlockNetwork,
        recipe: Recipe,
        tokens: Tensor,
        out: Path,
        inputs: Inputs,
        seed: int,
        medium: Medium,
        report: Report | None,
    ) -> None:
        self._network, self._recipe, self._tokens, self._out = network, recipe, tokens, out
        self._inputs, self._seed, self._report = inputs, seed, report
        self._store = StreamStore(out, medium, len(tokens))
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
        self._progress = RunProgress.of(out, about)

    def go_on(self, calls: Sequence[BlockCall]) -> list[BlockKept]:
        """The blocks that are not done, then what is outside of them, then the index."""
        progress, allocation = self._progress, self._recipe.allocation
        self._calls = calls
        if isinstance(allocation, SummaryAllocation) and not progress.done:
            self._through(progress.measured, self._measured)
        self._through(progress.done, self._pruned)
        self._told()
        self._finish(progress.shards)
        self._store.clear()
        return progress.done

    def _through(self, done: list[Finding], work: Callable[[int, Sequence[Tensor]], Worked[Finding]]) -> None:
        """Take the text through the blocks that are not done, and write after each how far it is.

        Args:
            done: what was found of the blocks so far; the others are added.
            work: from a block's number and the activations before it to what is found of it, and the
                activations before the next one.
        """
        network, progress, store = self._network, self._progress, self._store
        count = len(network.blocks)
        if len(done) == count:
            return
        if progress.stream is None:
            streams = store.kept(0, network.streams(self._tokens))
        else:
            streams = store.read(len(done), progress.stream)
        for number in range(len(done), count):
            self._told()
            with naming(f"{network.name}.{number}"):
                self._types = network.load(number)
                found, streams = work(number, streams)
            network.empty(number)
            give_back_memory()
            done.append(found)
            progress.stream = None if number + 1 == count else store.saved(number + 1, streams)
            self._progress.write()
            store.remove(number)

    def _told(self) -> None:
        if self._report is not None:
            passes = 2 if isinstance(self._recipe.allocation, SummaryAllocation) else 1
            done = len(self._progress.measured) + len(self._progress.done)
            self._report(done, passes * len(self._network.blocks))

    def _measured(self, number: int, streams: Sequence[Tensor]) -> Worked[dict[str, LayerSummary]]:
        """What an allocation that compares layers looks at, of each layer of a dense block."""
        allocation = self._recipe.allocation
        assert isinstance(allocation, SummaryAllocation)
        block, recipe = self._on_stream(number), self._of_block({"allocation": PerLayer(), "order": "all"})
        session = Session(block, recipe, data=SequenceBatches(streams), seed=self._block_seed(number))
        summaries = {
            name: LayerSummary(allocation.summarised(scores), scores.numel())
            for name, scores in session.scores().items()
        }
        return summaries, self._behind(number, block, streams)

    def _pruned(self, number: int, streams: Sequence[Tensor]) -> Worked[BlockKept]:
        """Prune a block and write it."""
        block = self._on_stream(number)
        behind: Sequence[Tensor] = []
        if self._inputs == "dense":
            behind = self._behind(number, block, streams)
        recipe = self._of_block(self._amounts(number))
        pruned = prune(block, recipe, SequenceBatches(streams), seed=self._block_seed(number))
        flags = {name.removeprefix("block."): each for name, each in pruned.kept.items()}
        kept = BlockKept(
            {name: int(each.sum()) for name, each in flags.items()},
            {name: each.numel() for name, each in flags.items()},
        )
        if pruned.coupled is not None:
            self._take_out(number, block, pruned.kept, streams[0])
        if self._inputs == "pruned":
            behind = self._behind(number, block, streams)
        give_back_memory()
        if not self._progress.shards:  # a folder that holds anything says what it is
            self._progress.write()
        self._progress.shards[_file(number)] = self._write_block(number)
        return kept, behind

    def _take_out(self, number: int, block: BlockOnStream, kept: Masks, stream: Tensor) -> None:
        """Make a block smaller, to the form of the first one."""
        take_out(block, kept, stream)
        if self._progress.form is None:
            self._progress.form = smaller_form(self._network, number, block, stream)
        self._progress.form.check(block.block)

    def _on_stream(self, number: int) -> BlockOnStream:
        return BlockOnStream(self._network.blocks[number], self._calls[number]).eval()

    def _behind(self, number: int, block: nn.Module, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """The activations behind a block, if there is another one."""
        if number + 1 == len(self._network.blocks):
            return []
        with torch.no_grad():
            return self._store.kept(number + 1, (block(stream) for stream in streams))

    def _of_block(self, changes: Mapping[str, Any]) -> Recipe:
        """The recipe as that of a block, which sees all sequences."""
        return self._recipe.model_copy(update={"calibration": len(self._tokens), **changes})

    def _amounts(self, number: int) -> dict[str, Any]:
        """What an allocation that compares layers takes of those of a block, once all are measured."""
        allocation = self._recipe.allocation
        if not isinstance(allocation, SummaryAllocation):
            return {}
        layers = {
            f"{block} {name}": layer
            for block, found in enumerate(self._progress.measured)
            for name, layer in found.items()
        }
        # the sizes count, for which no memory is taken
        kept = {name: torch.ones((), dtype=torch.bool).expand(layer.size) for name, layer in layers.items()}
        amounts = allocation.amounts_by(
            {name: layer.summary for name, layer in layers.items()},
            StepContext(step=Step(sparsity=self._recipe.schedule.sparsities()[0]), kept=Masks(kept)),
        )
        own = {name: amounts[f"{number} {name}"] for name in self._progress.measured[number]}
        return {"allocation": Recorded(removed=(own,)), "schedule": AllocationDecides()}

    def _block_seed(self, number: int) -> int:
        return derive(self._seed, "block", str(number))

    def _write_block(self, number: int) -> str:
        block, keys = self._network.blocks[number], self._network.keys_of(number)
        values = block.state_dict()
        tensors = {key: values[name].to(self._types[name]) for name, key in keys.items()}
        return write_shard(self._out / _file(number), tensors)

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
            other = path.suffix in (".json", ".txt", ".model", ".jinja") and path.name not in (
                INDEX,
                PROGRESS,
            )
            if other and path.is_file() and not path.is_symlink():
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
