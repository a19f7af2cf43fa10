"""Examples as a source of shuffled batches: tensors in memory, or a loader of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from prunekit.errors import DataError, InputError
from prunekit.seeds import generator, keeping_generators

Batch = tuple[Tensor, Tensor]


class Batches(Protocol):
    """Where training and statistics get their examples from."""

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """All examples once, in an order that `seed` and the epoch's number fix."""

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """About `count` examples in batches, the same for the same seed."""

    def length(self, batch_size: int) -> int:
        """The number of batches of an epoch."""

    def first(self, count: int) -> Batch | None:
        """Some examples to try things on, about `count`; what epochs and samples give stays the same."""


@runtime_checkable
class Examples(Protocol):
    """A pair of tensors with the examples along their first dimension."""

    inputs: Tensor
    targets: Tensor


class TensorBatches:
    """Examples held in memory; a batch is one indexing operation.

    Class numbers of any whole type are given out as int64, which losses ask for.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if not inputs.dim() or not targets.dim():
            raise DataError(
                f"inputs of the shape {tuple(inputs.shape)} and targets of the shape {tuple(targets.shape)}: "
                "the first dimension must be that of the examples"
            )
        if len(inputs) != len(targets):
            raise DataError(f"there are {len(inputs)} inputs but {len(targets)} targets")
        if not len(inputs):
            raise DataError("the dataset is empty: there are no examples")
        self.inputs = inputs
        self.targets = targets

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """All examples once; the order is a function of the seed and the epoch's number alone."""
        order = torch.randperm(len(self.inputs), generator=generator(seed, "epoch", number))
        return self._batches(order.to(self.inputs.device), batch_size)

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """`count` different examples, or all when there are fewer."""
        order = torch.randperm(len(self.inputs), generator=generator(seed, "sample"))[:count]
        return self._batches(order.to(self.inputs.device), batch_size)

    def length(self, batch_size: int) -> int:
        """The number of batches of an epoch; the last may be smaller."""
        return -(-len(self.inputs) // batch_size)

    def _batches(self, order: Tensor, batch_size: int) -> Iterator[Batch]:
        for chosen in order.split(batch_size):  # type: ignore[no-untyped-call]
            yield self.inputs[chosen], as_targets(self.targets[chosen])

    def first(self, count: int) -> Batch:
        """The first ones."""
        return self.inputs[:count], as_targets(self.targets[:count])


class LoaderBatches:
    """A loader of the user's, such as a `torch.utils.data.DataLoader`, yielding (inputs, targets).

    Its batch size and order are its own: the `batch_size` and the seed that are asked for do not act.
    """

    def __init__(self, loader: Iterable[Any]) -> None:
        self.loader = loader
        if self._known_length() == 0:
            raise DataError("the dataset is empty: the loader has no batches")

    def epoch(self, number: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """One walk through the loader."""
        for batch in self.loader:
            if not (isinstance(batch, tuple | list) and len(batch) == 2):
                raise DataError(
                    f"the loader must yield (inputs, targets), but yielded {type(batch).__name__}; "
                    "for other batches use your own loop with recipe.attach(model, optimizer)"
                )
            if not all(isinstance(part, Tensor) for part in batch):
                kinds = ", ".join(type(part).__name__ for part in batch)
                raise DataError(
                    f"the loader must yield tensors (inputs, targets), but yielded ({kinds}): wrap the model "
                    "in a module that takes one tensor, or use your own loop with "
                    "recipe.attach(model, optimizer)"
                )
            yield batch[0], as_targets(batch[1])

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Whole batches from the front until `count` examples are reached."""
        seen = 0
        for batch in self.epoch(0, batch_size, seed):
            if seen >= count:
                return
            seen += len(batch[0])
            yield batch

    def length(self, batch_size: int) -> int:
        """The loader's own length.

        Raises:
            InputError: if the loader does not know it.
        """
        batches = self._known_length()
        if batches is None:
            raise InputError(
                f"the loader ({type(self.loader).__name__}) has no length, so an epoch has no end: "
                "give it __len__, or use your own loop with recipe.attach(model, optimizer)"
            )
        return batches

    def first(self, count: int) -> Batch | None:
        """The loader's first batch, whole: how many examples a network takes at once may be fixed.

        None where the loader gives none. The generators that a `DataLoader` shuffles by are put back.

        Raises:
            DataError: if it is no pair of tensors with as many inputs as targets.
        """
        owners = (self.loader, getattr(self.loader, "sampler", None))
        generators = (getattr(owner, "generator", None) for owner in owners)
        own = [generator for generator in generators if isinstance(generator, torch.Generator)]
        states = [generator.get_state() for generator in own]
        try:
            with keeping_generators():
                batch = next(self.epoch(0, count, 0), None)
        finally:
            for generator, state in zip(own, states, strict=True):
                generator.set_state(state)
        if batch is not None:
            TensorBatches(*batch)
        return batch

    def _known_length(self) -> int | None:
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:  # so says a loader over a stream
            return None


def as_targets(targets: Tensor) -> Tensor:
    """Class numbers as int64, real values as they are.

    Raises:
        DataError: if they are neither.
    """
    if targets.dtype == torch.int64 or targets.is_floating_point():
        return targets
    if targets.is_complex():
        raise DataError(f"targets must be class numbers or real values, not {targets.dtype}")
    return targets.long()


def as_batches(data: Any) -> Batches:
    """Examples from tensors `(inputs, targets)`, a split or dataset of `prunekit.data`, or a loader.

    A dataset gives its training part. Raises `DataError` for an empty one and `InputError` for other things.
    """
    part = getattr(data, "train", None)
    if isinstance(part, Examples | tuple | list):
        data = part
    if isinstance(data, TensorBatches | LoaderBatches):
        return data
    if isinstance(data, Examples):
        return TensorBatches(data.inputs, data.targets)
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        return TensorBatches(data[0], data[1])
    if isinstance(data, tuple | list) and any(isinstance(part, Tensor) for part in data):
        raise InputError(f"data must be a pair of tensors (inputs, targets), not {len(data)} things")
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not hasattr(data, "__iter__"):
        raise InputError(
            f"{type(data).__name__} gives single examples: wrap it in a torch.utils.data.DataLoader, "
            "or give its tensors as (inputs, targets)"
        )
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Tensor | Iterator):
        return LoaderBatches(data)
    raise InputError(
        f"data must be a pair of tensors (inputs, targets), a dataset, or a loader, not {type(data).__name__}"
    )
