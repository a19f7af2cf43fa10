"""Blocks pruned from the first to the last, each on what those before it make of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from prunekit.blockwise.allocator import give_back_memory
from prunekit.blockwise.block_run import BlockwiseRun
from prunekit.blockwise.run_progress import BlockKept, LayerSummary
from prunekit.blockwise.text_activations import SequenceBatches
from prunekit.errors import naming
from prunekit.masks import Masks
from prunekit.parts.allocation import PerLayer, Recorded, SummaryAllocation
from prunekit.parts.context import StepContext
from prunekit.parts.schedule import AllocationDecides, Step
from prunekit.pruning.session import Session

Finding = TypeVar("Finding")

Worked = tuple[Finding, Sequence[Tensor]]
"""What is found of a block, and the activations before the next one."""


class ForwardRun(BlockwiseRun):
    """A pruning whose text goes through the blocks in order; twice where an allocation compares layers."""

    def _prune_blocks(self) -> None:
        progress, allocation = self._progress, self._recipe.allocation
        if isinstance(allocation, SummaryAllocation) and not progress.done:
            self._through(progress.measured, self._measure)
        self._through(progress.done, self._prune)

    def _passes(self) -> tuple[int, int]:
        passes = 2 if isinstance(self._recipe.allocation, SummaryAllocation) else 1
        done = len(self._progress.measured) + len(self._progress.done)
        return done, passes * len(self._network.blocks)

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
        if not progress.streams:
            streams = store.kept(0, network.streams(self._tokens))
        else:
            streams = store.read(len(done), progress.streams)
        for number in range(len(done), count):
            self._told()
            with naming(network.block_name(number)):
                self._types = network.load(number)
                found, streams = work(number, streams)
            network.empty(number)
            give_back_memory()
            done.append(found)
            progress.streams = {} if number + 1 == count else store.saved(number + 1, streams)
            progress.write()
            store.remove(number)

    def _measure(self, number: int, streams: Sequence[Tensor]) -> Worked[dict[str, LayerSummary]]:
        """What an allocation that compares layers looks at, of each layer of a dense block."""
        allocation = self._recipe.allocation
        assert isinstance(allocation, SummaryAllocation)
        block = self._on_stream(number)
        recipe = self._of_block(number, {"allocation": PerLayer(), "order": "all"})
        if recipe is None:
            return {}, self._behind(number, block, streams)
        session = Session(block, recipe, data=SequenceBatches(streams), seed=self._block_seed(number))
        summaries = {
            name: LayerSummary(allocation.summarised(scores), scores.numel())
            for name, scores in session.scores().items()
        }
        return summaries, self._behind(number, block, streams)

    def _prune(self, number: int, streams: Sequence[Tensor]) -> Worked[BlockKept]:
        """Prune a block and write it."""
        block = self._on_stream(number)
        behind: Sequence[Tensor] = []
        if self._inputs == "dense":
            behind = self._behind(number, block, streams)
        kept = self._pruned(number, block, SequenceBatches(streams), self._amounts(number))
        if self._inputs == "pruned":
            behind = self._behind(number, block, streams)
        self._write_block(number)
        return kept, behind

    def _behind(self, number: int, block: nn.Module, streams: Sequence[Tensor]) -> Sequence[Tensor]:
        """The activations behind a block, if there is another one."""
        if number + 1 == len(self._network.blocks):
            return []
        with torch.no_grad():
            return self._store.kept(number + 1, (block(stream) for stream in streams))

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
