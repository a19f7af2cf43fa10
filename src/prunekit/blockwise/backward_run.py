"""Blocks pruned from the last to the first, each by the gradient of the loss that comes back to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from prunekit.blockwise.allocator import give_back_memory
from prunekit.blockwise.block_run import BlockwiseRun
from prunekit.blockwise.text_activations import SequenceBatches, StreamStore
from prunekit.errors import naming


class BackwardRun(BlockwiseRun):
    """A pruning by gradients of the dense network, of which only one block is in memory.

    The text goes through all blocks, and the activations x_i before each block i are put on disk. The loss L
    of the next tokens has a gradient dL/dx_n behind the last of n blocks. From there back, with

        l(y) = <dL/dx_{i+1}, y>

    as the loss of what block i gives, l has the same gradient as L in the weights of block i, and in x_i,
    which is that of the block before. So a recipe needs to know nothing of what is behind the block.
    """

    def _prune_blocks(self) -> None:
        self._gradients = StreamStore(self._out, self._medium, len(self._tokens), "gradient")
        if self._left:
            if not self._progress.gradients:
                if self._recipe.granularity.level == "units" and not self._progress.streams:
                    self._try_form()
                self._forward()
                behind = self._differentiated()
            else:
                behind = self._gradients.read(self._left, self._progress.gradients)
            while self._left:
                self._told()
                behind = self._prune(self._left - 1, behind)
        self._gradients.clear()  # what a run that was killed has left, too

    @property
    def _left(self) -> int:
        """How many blocks are not pruned: the first ones."""
        return len(self._network.blocks) - len(self._progress.done)

    def _passes(self) -> tuple[int, int]:
        count = len(self._network.blocks)
        back = self._progress.gradients or self._progress.done
        through = count if back else max(len(self._progress.streams) - 1, 0)
        return through + len(self._progress.done), 2 * count

    def _try_form(self) -> None:
        """Take units out of a copy of the last block, by any gradient, before the text goes through all."""
        number = len(self._network.blocks) - 1
        streams = list(self._network.streams(self._tokens[:1]))
        block = self._on_stream(number, self._network.copied(number))
        with naming(self._network.block_name(number)):
            self._pruned(number, block, SequenceBatches(streams, streams), {}, _linear_loss)
        del block
        give_back_memory()

    def _forward(self) -> None:
        """The text through all dense blocks; the activations before and behind each are on disk then."""
        network, progress, store = self._network, self._progress, self._store
        if not progress.streams:
            streams = store.kept(0, network.streams(self._tokens))
            progress.streams = store.saved(0, streams)
            progress.write()
        else:
            streams = store.read(len(progress.streams) - 1, progress.streams)
        for number in range(len(progress.streams) - 1, len(network.blocks)):
            self._told()
            with naming(network.block_name(number)), torch.no_grad():
                network.load(number)
                block = self._on_stream(number)
                streams = store.kept(number + 1, map(block, streams))
            network.empty(number)
            give_back_memory()
            progress.streams |= store.saved(number + 1, streams)
            progress.write()

    def _differentiated(self) -> Sequence[Tensor]:
        """The gradients of the loss in the activations behind the last block."""
        network, progress, store = self._network, self._progress, self._store
        last = len(network.blocks)
        rows = zip(store.read(last, progress.streams), self._tokens, strict=True)
        behind = self._gradients.kept(last, (network.loss_gradient(stream, row) for stream, row in rows))
        progress.gradients = self._gradients.saved(last, behind)
        progress.streams.pop(store.file(last))
        progress.write()
        store.remove(last)
        return behind

    def _prune(self, number: int, behind: Sequence[Tensor]) -> Sequence[Tensor]:
        """Prune a block and write it; the gradients in the activations before it, from those behind it."""
        network, progress = self._network, self._progress
        streams = self._store.read(number, progress.streams)
        before: Sequence[Tensor] = []
        with naming(network.block_name(number)):
            self._types = network.load(number)
            block = self._on_stream(number)
            if number:
                before = self._gradients.kept(number, _carried_back(block, streams, behind))
            kept = self._pruned(number, block, SequenceBatches(streams, behind), {}, _linear_loss)
            self._write_block(number)
        network.empty(number)
        give_back_memory()
        progress.done.insert(0, kept)
        progress.gradients = self._gradients.saved(number, before) if number else {}
        progress.streams.pop(self._store.file(number))
        progress.write()
        self._store.remove(number)
        self._gradients.remove(number + 1)
        return before


def _carried_back(block: nn.Module, streams: Sequence[Tensor], behind: Sequence[Tensor]) -> Iterator[Tensor]:
    """The gradients in what a block is given, from those in what it gives, sequence by sequence."""
    for stream, gradient in zip(streams, behind, strict=True):
        given = stream.detach().requires_grad_()
        with torch.enable_grad():
            found = block(given)
        yield torch.autograd.grad(found, given, gradient)[0]


def _linear_loss(outputs: Tensor, gradient: Tensor) -> Tensor:
    """A loss of what a block gives for a sequence, of this gradient."""
    return (outputs * gradient).sum()
