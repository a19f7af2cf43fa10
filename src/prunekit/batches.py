"""Batches of any kind, what a network is given of them, and examples as a source of shuffled batches.

A batch of a user's is read once, by `prunekit.task.Task.read`; everything behind it sees a `Batch`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from prunekit.errors import DataError, InputError, said
from prunekit.seeds import generator, keeping_generators

__all__ = ["Batch", "Batches", "as_batches", "read_batch"]

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]
"""What a network is given: one tensor, a tuple of positional arguments, or a mapping of named ones."""


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments for the network.

    Raises:
        InputError: where the inputs are neither a tensor nor a tuple, list or mapping.
    """
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    kind = type(inputs).__name__
    raise InputError(f"example_inputs must be a tensor, a tuple or a dict of named arguments, not {kind}")


def feed(model: nn.Module, inputs: Inputs) -> Any:
    """What a network gives for these inputs."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = arguments(inputs)
    return model(*args, **kwargs)


@dataclass(frozen=True)
class Batch:
    """A batch as everything behind `Task.read` sees it.

    Attributes:
        inputs: what the network is given; the first dimension of each tensor is that of the examples.
        targets: what is wanted of it: a tensor, several in tuples or mappings, or None.
        fed: what the network is given besides where its own loss is asked for, by names: the labels.
    """

    inputs: Inputs
    targets: Any
    fed: Mapping[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        """Inputs and targets, so that a batch is taken apart like a pair."""
        return iter((self.inputs, self.targets))

    def __len__(self) -> int:
        """The number of examples."""
        return examples_in(self.inputs)

    @property
    def described(self) -> str:
        """Its inputs in words, such as "3 inputs of the shape (10,) and type torch.float32"."""
        return f"{len(self)} inputs of {shaped(self.inputs, types=True)}"

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with every tensor of inputs and targets changed."""
        if isinstance(self.inputs, Tensor) and isinstance(self.targets, Tensor) and not self.fed:
            return Batch(change(self.inputs), change(self.targets))  # once a step of training
        return Batch(*pytree.tree_map_only(Tensor, change, self._parts()))

    def _parts(self) -> tuple[Any, Any, dict[str, Any]]:
        return _plain(self.inputs), _plain(self.targets), dict(self.fed)

    def examples(self, start: int, stop: int) -> Batch:
        """Some of the examples; what is no tensor, or has another first dimension, stays whole."""
        count = len(self)

        def cut(tensor: Tensor) -> Tensor:
            return tensor[start:stop] if tensor.dim() and len(tensor) == count else tensor

        return self.map(cut)

    def parts(self, size: int) -> Iterator[Batch]:
        """The batch in parts of so many examples, the last with what is left."""
        return (self.examples(start, start + size) for start in range(0, len(self), size))


def examples_in(inputs: Any) -> int:
    """The number of examples: the first dimension of the first tensor that has one.

    Raises:
        DataError: if there is none.
    """
    for leaf in (inputs,) if isinstance(inputs, Tensor) else pytree.tree_leaves(_plain(inputs)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return len(leaf)
    raise DataError("a batch has no tensor with a dimension of the examples among its inputs")


def without_padding(values: Tensor, real: Tensor | None) -> Tensor:
    """Values at real positions only, as one example, or as they are where they are of no positions.

    Of values (2, 3, 8) and flags [[True, True, False], [True, True, True]] five rows are left: (1, 5, 8).

    Args:
        values: (examples, positions, ...), or (examples x positions, ...).
        real: (examples, positions), False where sequences are padded; None where nothing is.
    """
    if real is None:
        return values
    if values.dim() > 2 and values.shape[:2] == real.shape:
        return values[real].unsqueeze(0)
    if values.dim() == 2 and real.shape[1] > 1 and len(values) == real.numel():
        return values[real.flatten()]
    return values


def joined(batches: Sequence[Batch]) -> Batch:
    """All examples in one batch; tensors without a dimension of the examples are those of the first."""
    if len(batches) == 1:
        return batches[0]
    counts = [len(batch) for batch in batches]

    def join(*parts: Any) -> Any:
        tensors = [part for part in parts if isinstance(part, Tensor) and part.dim()]
        return torch.cat(tensors) if [len(each) for each in tensors] == counts else parts[0]

    trees = [batch._parts() for batch in batches]
    return Batch(*pytree.tree_map(join, trees[0], *trees[1:]))


def _plain(value: Any) -> Any:
    """Mappings of classes of their own, such as a tokenizer's, as dicts, which pytrees are made of."""
    if isinstance(value, Mapping) and type(value) is not dict:
        return {key: _plain(each) for key, each in value.items()}
    return value


Read = Callable[[Any], Batch]
"""From what a loader yields to a batch."""


@runtime_checkable
class Batches(Protocol):
    """Where training and statistics get their examples from."""

    def epoch(self, number: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """All examples once, in an order that `seed` and the number fix, without the first `skip` batches."""

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """About `count` examples in batches, the same for the same seed."""

    def length(self, batch_size: int) -> int | None:
        """The number of batches of an epoch; None where nobody knows it, as of a stream."""

    def smallest(self, batch_size: int) -> int | None:
        """The examples of the smallest batch of an epoch, where that is known."""

    def first(self, count: int) -> Batch | None:
        """Some examples to try things on, about `count`; what epochs and samples give stays the same."""


def shaped(values: Any, *, types: bool = False) -> str:
    """The shapes of examples, and the types of their tensors, as messages have them."""
    if isinstance(values, Tensor):
        return f"the shape {tuple(values.shape[1:])}" + (f" and type {values.dtype}" if types else "")
    named, _ = pytree.tree_flatten_with_path(values)
    tensors = [(pytree.keystr(path), each) for path, each in named if isinstance(each, Tensor)]
    return ", ".join(f"{place}: {shaped(each, types=types)}" for place, each in tensors)


@runtime_checkable
class Examples(Protocol):
    """A pair of tensors with the examples along their first dimension."""

    inputs: Tensor
    targets: Tensor


class _ByIndex(ABC):
    """Examples that are read by their numbers, shuffled by the seed."""

    size: int

    def epoch(self, number: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """All examples once; the order is a function of the seed and the epoch's number alone."""
        return self._batches(self.epoch_order(number, seed), batch_size, skip)

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """`count` different examples, or all when there are fewer."""
        return self._batches(self.sample_order(count, seed), batch_size)

    def epoch_order(self, number: int, seed: int) -> Tensor:
        """(examples,) their numbers in the order of an epoch."""
        return torch.randperm(self.size, generator=generator(seed, "epoch", number))

    def sample_order(self, count: int, seed: int) -> Tensor:
        """(count,) the numbers of a sample, or of all examples when there are fewer."""
        return torch.randperm(self.size, generator=generator(seed, "sample"))[:count]

    def length(self, batch_size: int) -> int:
        """The number of batches of an epoch; the last may be smaller."""
        return -(-self.size // batch_size)

    def smallest(self, batch_size: int) -> int:
        """The examples of the last batch."""
        return self.size % batch_size or batch_size

    def _batches(self, order: Tensor, batch_size: int, skip: int = 0) -> Iterator[Batch]:
        return map(self.chosen, order.split(batch_size)[skip:])  # type: ignore[no-untyped-call]

    @abstractmethod
    def chosen(self, numbers: Tensor) -> Batch:
        """The examples of these numbers."""


class TensorBatches(_ByIndex):
    """Examples held in memory; a batch is one indexing operation.

    Class numbers of any whole type are given out as int64, which losses ask for. Several inputs are a tuple
    or mapping of tensors, whose first dimension is that of the examples in all of them.
    """

    def __init__(self, inputs: Inputs, targets: Any, fed: Mapping[str, Any] | None = None) -> None:
        self.all = Batch(inputs, as_targets(targets), fed or {})
        given, wanted = (_leaves(each) for each in (inputs, targets))
        for place, leaves in (("inputs", given), ("targets", wanted)):
            for leaf in leaves:
                if not isinstance(leaf, Tensor):
                    raise DataError(f"{place} in memory must be tensors, not {type(leaf).__name__}")
        if not all(leaf.dim() for leaf in (*given, *wanted)):
            raise DataError(
                f"inputs of the shape {_shapes(given)} and targets of the shape {_shapes(wanted)}: "
                "the first dimension must be that of the examples; a list is one of batches: "
                "single examples go into a torch.utils.data.DataLoader"
            )
        count = len(self.all)
        for leaf in given:
            if len(leaf) != count:
                raise DataError(f"the inputs are of {count} and of {len(leaf)} examples")
        for leaf in wanted:
            if len(leaf) != count:
                raise DataError(f"there are {count} inputs but {len(leaf)} targets")
        if not count:
            raise DataError("the dataset is empty: there are no examples")
        self.size = count

    def _batches(self, order: Tensor, batch_size: int, skip: int = 0) -> Iterator[Batch]:
        return super()._batches(order.to(_leaves(self.all.inputs)[0].device), batch_size, skip)

    def chosen(self, numbers: Tensor) -> Batch:
        """The examples of these numbers."""
        return self.all.map(lambda tensor: tensor[numbers])

    def first(self, count: int) -> Batch:
        """The first ones; copies, as a network may change what it is given."""
        return self.all.examples(0, count).map(Tensor.clone)


class DatasetBatches(_ByIndex):
    """A dataset of single examples that are read by index, such as a `torch.utils.data.Dataset`."""

    def __init__(self, dataset: Any, read: Read | None = None) -> None:
        self.dataset, self.read = dataset, read or read_batch
        self.size = len(dataset)
        if not self.size:
            raise DataError("the dataset is empty: there are no examples")

    def first(self, count: int) -> Batch | None:
        """The first ones."""
        with keeping_generators():
            return self.chosen(torch.arange(min(count, self.size)))

    def chosen(self, numbers: Tensor) -> Batch:
        """The examples of these numbers."""
        return self.read(_collated(self.dataset, [self.dataset[number] for number in numbers.tolist()]))


class StreamBatches:
    """A stream of single examples (`IterableDataset`), in its own order and of a length that nobody knows."""

    def __init__(self, dataset: Any, read: Read | None = None) -> None:
        self.dataset, self.read = dataset, read or read_batch

    def epoch(self, number: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """One walk through the stream."""
        examples = islice(self.dataset, skip * batch_size, None)
        while together := list(islice(examples, batch_size)):
            yield self.read(_collated(self.dataset, together))

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Whole batches from the front until `count` examples are reached."""
        return enough(self.epoch(0, batch_size, seed), count)

    def length(self, batch_size: int) -> None:
        """Not known."""

    def smallest(self, batch_size: int) -> None:
        """Not known."""

    def first(self, count: int) -> Batch | None:
        """The first ones; None where the stream gives none."""
        with keeping_generators():
            return next(self.epoch(0, count, 0), None)


def _collated(dataset: Any, examples: list[Any]) -> Any:
    """Single examples put together by torch's collation."""
    try:
        return default_collate(examples)
    except Exception as error:  # what it says of examples of several sizes is long
        raise DataError(
            f"examples of the dataset ({type(dataset).__name__}) make no batch: {said(error)}; "
            "give a torch.utils.data.DataLoader with a collate_fn of your own"
        ) from error


class LoaderBatches:
    """A loader of the user's, such as a `torch.utils.data.DataLoader`, that yields batches.

    Its batch size and order are its own: the `batch_size` and the seed that are asked for do not act.
    """

    def __init__(self, loader: Iterable[Any], read: Read | None = None) -> None:
        self.loader, self.read = loader, read or read_batch
        if self.length(0) == 0:
            raise DataError("the dataset is empty: the loader has no batches")

    def epoch(self, number: int, batch_size: int, seed: int, skip: int = 0) -> Iterator[Batch]:
        """One walk through the loader."""
        return map(self.read, islice(self.loader, skip, None))

    def sample(self, count: int, batch_size: int, seed: int) -> Iterator[Batch]:
        """Whole batches from the front until `count` examples are reached."""
        return enough(self.epoch(0, batch_size, seed), count)

    def length(self, batch_size: int) -> int | None:
        """The loader's own length; None where it does not know it."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:  # so says a loader over a stream
            return None

    def smallest(self, batch_size: int) -> int | None:
        """The examples of a `DataLoader`'s last batch; None where its batches are made by other rules."""
        loader = self.loader
        if not isinstance(loader, DataLoader) or loader.batch_size is None or loader.drop_last:
            return None
        try:
            return len(loader.sampler) % loader.batch_size or loader.batch_size  # type: ignore[arg-type]
        except TypeError:  # a stream has no length
            return None

    def first(self, count: int) -> Batch | None:
        """The loader's first batch, whole: how many examples a network takes at once may be fixed.

        None where the loader gives none. The generators that a `DataLoader` shuffles by are put back.

        Raises:
            DataError: if its tensors are of different numbers of examples.
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
        if batch is not None and isinstance(batch.inputs, Tensor) and isinstance(batch.targets, Tensor):
            TensorBatches(batch.inputs, batch.targets)
        return batch


def enough(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Whole batches until `count` examples are reached."""
    seen = 0
    for batch in batches:
        if seen >= count:
            return
        seen += len(batch)
        yield batch


def as_targets(targets: Any) -> Any:
    """Class numbers as int64, real values as they are; of several tensors, each.

    Raises:
        DataError: if they are neither.
    """
    if not isinstance(targets, Tensor):
        return pytree.tree_map_only(Tensor, as_targets, _plain(targets))
    if targets.dtype == torch.int64 or targets.is_floating_point():
        return targets
    if targets.is_complex():
        raise DataError(f"targets must be class numbers or real values, not {targets.dtype}")
    return targets.long()


def as_tensors(values: Any) -> Any:
    """Arrays of NumPy and columns of pandas as tensors; other things as they are.

    Real values get torch's default type: float64 is what these libraries have for want of a reason.

    Raises:
        DataError: for arrays of neither numbers nor booleans, naming the first such column.
    """
    if isinstance(values, Mapping):
        return {key: as_tensors(each) for key, each in values.items()}
    if isinstance(values, tuple | list):
        return type(values)(as_tensors(each) for each in values)
    if isinstance(values, Tensor) or not (isinstance(values, np.ndarray) or hasattr(values, "to_numpy")):
        return values
    array = values if isinstance(values, np.ndarray) else values.to_numpy()
    if array.dtype.kind not in "biuf":
        columns = getattr(values, "dtypes", {})
        named = [name for name, kind in getattr(columns, "items", dict)() if kind.kind not in "biuf"]
        if not named and getattr(values, "name", None) is not None:
            named = [values.name]  # a column by itself
        which = f"the column {named[0]!r}" if named else f"an array of the type {array.dtype}"
        raise DataError(f"{which} holds no numbers: encode it first")
    tensor = torch.from_numpy(np.array(array))  # a copy of its own, in one piece
    return tensor.to(torch.get_default_dtype()) if array.dtype == np.float64 else tensor


def as_batches(data: Any, read: Read | None = None) -> Batches:
    """Examples as batches: in memory, as a dataset, or as a loader of batches.

    - `(inputs, targets)`: tensors, arrays of NumPy or columns of pandas, several in a tuple or mapping;
    - `(a, b, targets)`, for a network of two inputs, or of more;
    - a mapping of them, such as a tokenizer gives, with the targets among them by name (see `read_batch`);
    - a split or dataset of `prunekit.data`, which gives its training part;
    - a `torch.utils.data.Dataset`, or one of Hugging Face's, of single examples;
    - a loader, or a list, of batches of any kind that `read` can read;
    - what has a method `as_batches`, such as `prunekit.distributed.shard(data)`.

    Args:
        data: the examples.
        read: how a batch is read; by default `read_batch`.

    Raises:
        DataError: for data that is empty or of different numbers of examples.
        InputError: for other things.
    """
    read = read or read_batch
    if hasattr(data, "as_batches"):
        own: Batches = data.as_batches(read)
        return own
    part = getattr(data, "train", None)
    if isinstance(part, Examples | tuple | list):
        data = part
    if isinstance(data, Batches):
        return data
    if isinstance(data, Examples) and not isinstance(data, Mapping):
        return TensorBatches(data.inputs, data.targets)
    pair = _pair(data)
    if pair is not None:
        return TensorBatches(*pair)
    if isinstance(data, Mapping) or _of_several_inputs(data):
        found = read(as_tensors(data))
        return TensorBatches(found.inputs, found.targets, found.fed)
    if isinstance(data, tuple | list) and any(isinstance(part, Tensor) for part in data):
        kinds = ", ".join(type(part).__name__ for part in data)
        raise InputError(f"data must be a pair of tensors (inputs, targets), not ({kinds})")
    if _of_single_examples(data):
        return (StreamBatches if isinstance(data, IterableDataset) else DatasetBatches)(data, read)
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | Tensor | Iterator):
        return LoaderBatches(data, read)
    raise InputError(
        f"data must be a pair of tensors (inputs, targets), a dataset, or a loader, not {type(data).__name__}"
    )


def _of_several_inputs(data: Any) -> bool:
    """Whether it is a tuple of all inputs and the targets; a list is one of batches."""
    several = isinstance(data, tuple) and len(data) > 2
    return several and all(isinstance(part, Tensor | np.ndarray) for part in data)


def _pair(data: Any) -> tuple[Any, Any] | None:
    """Inputs and targets in memory; a list of two pairs is one of two batches."""
    if not isinstance(data, tuple | list) or len(data) != 2:
        return None
    inputs, targets = as_tensors(data)
    if isinstance(targets, Tensor) and (isinstance(inputs, Tensor) or isinstance(data, tuple)):
        return inputs, targets
    return None


def _of_single_examples(data: Any) -> bool:
    """Whether it gives one example after the other, not batches."""
    if isinstance(data, tuple | list):
        return False
    by_index = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    rows = by_index and hasattr(data, "column_names")  # a dataset of Hugging Face's
    return isinstance(data, Dataset) or rows or (by_index and not hasattr(data, "__iter__"))


# ---- a batch of the user's, read ---------------------------------------------------------------------------

TARGETS = ("labels", "label", "targets", "target", "y")
"""The names by which a mapping's targets are known."""


def read_batch(
    batch: Any, takes: Callable[[str], bool] | None = None, positional: int | None = None
) -> Batch:
    """What a network is given of a batch, and what is wanted of it.

    - a pair is (inputs, targets); the inputs may be several, in a tuple or mapping;
    - a longer tuple is that of all inputs and the targets last, for a network of so many inputs;
    - a mapping, or a dataclass, holds the inputs by the names of the network's arguments, and the targets
      under one of `TARGETS`;
    - one tensor alone is the inputs, without targets.

    Args:
        batch: as a loader yields it.
        takes: whether the network takes an argument of a name; without it no targets are fed to it.
        positional: how many inputs the network takes.

    Raises:
        DataError: for another kind of batch, or one without inputs.
    """
    if isinstance(batch, Batch):
        return batch
    if isinstance(batch, Tensor):
        return Batch(batch, None)
    own = getattr(batch, "__dataclass_fields__", None)
    if own is not None and not isinstance(batch, type | Mapping):
        batch = {name: getattr(batch, name) for name in own}
    if isinstance(batch, Mapping):
        key = next((name for name in TARGETS if name in batch), None)
        inputs = {name: value for name, value in batch.items() if name != key}
        if not inputs:
            raise DataError(f"a batch has no inputs, only {key!r}" if key else "a batch is an empty mapping")
        targets = None if key is None else as_targets(batch[key])
        return Batch(inputs, targets, {key: targets} if key and takes is not None and takes(key) else {})
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return Batch(batch[0], as_targets(batch[1]))
    if isinstance(batch, tuple | list) and len(batch) == 1:
        return read_batch(batch[0], takes, positional)
    if isinstance(batch, tuple | list) and batch and len(batch) - 1 == positional:
        return Batch(tuple(batch[:-1]), as_targets(batch[-1]))
    kind = type(batch).__name__
    if isinstance(batch, tuple | list):
        kind += f" of {len(batch)}"
        kind += "" if positional is None else f", where the network takes {positional} input(s)"
    raise DataError(
        f"a batch must be (inputs, targets), or a mapping with one of {', '.join(TARGETS)}, and is a "
        f"{kind}: give prune() a prunekit.Task whose read() makes a prunekit.Batch of it"
    )


def _leaves(tree: Any) -> list[Any]:
    return [leaf for leaf in pytree.tree_leaves(_plain(tree)) if leaf is not None]


def _shapes(leaves: Sequence[Tensor]) -> str:
    return ", ".join(str(tuple(leaf.shape)) for leaf in leaves)
