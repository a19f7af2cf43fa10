"""The part that one process reads of examples that all processes have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from prunekit.batches import Batch, Batches, DatasetBatches, Read, TensorBatches, as_batches
from prunekit.distributed.collectives import processes, rank
from prunekit.errors import DataError, InputError


def shard(data: Any) -> Any:
    """This process's part of the data, for `prune`, `train` and `Session`; alone, all of it.

    Every process gives the same data, in memory, as a dataset or as a loader with the same order everywhere.
    Of a calibration sample, and of every batch of a training, each process then takes the examples whose
    number modulo the number of processes is its own: together they see what one process would see, and the
    `batch_size` of a training is that of all processes together. Examples in memory and of datasets are read
    by their own process only; a loader gives its batches to all, which take their parts of them.

    An epoch's last batch is left out where it has fewer examples than there are processes; such a batch of a
    loader, whose number nobody knows, is an error.

    Without it each process gives data of its own, such as a `DataLoader` with a `DistributedSampler`.
    """
    return data if processes() == 1 else DataShard(data)


class DataShard:
    """Data that is divided once it is known how it is read.

    Attributes:
        data: all of it.
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def as_batches(self, read: Read | None) -> Batches:
        """This process's part, in batches."""
        return ShardedBatches(as_batches(self.data, read), rank(), processes())


class ShardedBatches:
    """One process's part of the batches of all.

    Attributes:
        whole: the batches of all.
        rank: the number of the process.
        processes: how many there are.
    """

    def __init__(self, whole: Batches, rank: int, processes: int) -> None:
        self.whole, self.rank, self.processes = whole, rank, processes

    def epoch(self, number: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """The process's part of each batch.

        Raises:
            DataError: if a loader's batch has fewer examples than there are processes.
        """
        if isinstance(self.whole, TensorBatches | DatasetBatches):
            parts = self.whole.epoch_order(number, seed).split(batch_size)[skip:]  # type: ignore[no-untyped-call]
            return (self.whole.chosen(self._own(part)) for part in parts if len(part) >= self.processes)
        return map(self._part, self.whole.epoch(number, batch_size, seed, skip))

    def _own(self, numbers: Tensor) -> Tensor:
        return numbers[self.rank :: self.processes]

    def _part(self, batch: Batch) -> Batch:
        if len(batch) < self.processes:
            raise DataError(
                f"a batch of {len(batch)} examples cannot be shared out over {self.processes} processes: "
                "give the loader a larger batch_size and drop_last"
            )
        return _strided(batch, self.rank, self.processes)

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """The process's part of the sample of all; nothing where there are fewer examples than processes."""
        if isinstance(self.whole, TensorBatches | DatasetBatches):
            own = self._own(self.whole.sample_order(count, seed))
            yield from map(self.whole.chosen, own.split(batch_size) if len(own) else ())  # type: ignore[no-untyped-call]
            return
        seen = 0
        for batch in self.whole.sample(count, batch_size, seed):
            first = (self.rank - seen) % self.processes
            seen += len(batch)
            if first < len(batch):
                yield _strided(batch, first, self.processes)

    def length(self, batch_size: int) -> int | None:
        """The number of batches of an epoch.

        Raises:
            InputError: if a batch has fewer examples than there are processes.
        """
        found = self.whole.length(batch_size)
        if found is None or not isinstance(self.whole, TensorBatches | DatasetBatches):
            return found
        if batch_size < self.processes:
            raise InputError(
                f"batch_size: {batch_size} examples cannot be shared out over {self.processes} processes; "
                f"give at least {self.processes}"
            )
        return found - (self.whole.smallest(batch_size) < self.processes)

    def smallest(self, batch_size: int) -> int | None:
        """The process's examples of the smallest batch, where that is known."""
        found = self.whole.smallest(batch_size)
        if found is None:
            return None
        return (found if found >= self.processes else batch_size) // self.processes

    def first(self, count: int) -> Batch | None:
        """Some examples to try things on: the same for all processes."""
        return self.whole.first(count)


def _strided(batch: Batch, first: int, step: int) -> Batch:
    """Every so many of the examples; what is no tensor of examples stays whole."""
    count = len(batch)
    return batch.map(lambda each: each[first::step] if each.dim() and len(each) == count else each)
