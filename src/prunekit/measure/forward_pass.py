"""A forward pass: its example inputs, the time it takes and the memory, and the bytes of a stored state."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from prunekit.batches import Inputs, arguments
from prunekit.errors import InputError
from prunekit.measure.human import human_seconds
from prunekit.modes import evaluating
from prunekit.settings import WHOLE, whole
from prunekit.targets import device_of


@dataclass(frozen=True)
class PassInputs:
    """The arguments of one forward pass, and how many examples they are a batch of."""

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    batch: int

    def __call__(self, model: nn.Module) -> Any:
        """What a model gives."""
        return model(*self.args, **self.named)


def call_of(example_inputs: Inputs, device: torch.device) -> PassInputs:
    """One forward pass on inputs, with their tensors on `device`.

    Raises:
        InputError: if there is no tensor among them, or the first has no batch dimension or an empty one.
    """
    args, named = tree_map_only(Tensor, lambda tensor: tensor.to(device), arguments(example_inputs))
    first = next((leaf for leaf in tree_leaves((args, named)) if isinstance(leaf, Tensor)), None)
    if first is None:
        raise InputError("example_inputs must be a tensor, a tuple of tensors or a dict of named ones")
    if first.dim() == 0 or len(first) == 0:
        raise InputError(f"example_inputs need a batch of at least 1, got the shape {tuple(first.shape)}")
    return PassInputs(args, named, len(first))


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of one forward pass of `batch` examples, over `runs` passes.

    The median is the number to quote. `p10` and `p90` are percentiles, interpolated linearly.
    """

    median: float
    mean: float
    p10: float
    p90: float
    min: float
    max: float
    runs: int
    threads: int
    batch: int

    def __str__(self) -> str:
        examples = "1 example" if self.batch == 1 else f"{self.batch:,} examples"
        return f"{human_seconds(self.median)} for {examples}"


def latency(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    warmup: int = 10,
    runs: int = 50,
    threads: int = 1,
) -> Latency:
    """Time the forward pass in evaluation and inference mode, each pass by itself.

    Inputs are on the model's device before the clock starts, and a GPU has finished before it stops. The
    number of threads is set for the time of the measurement and put back afterwards, whatever happens.

    Args:
        model: any module.
        example_inputs: those of one pass: a tensor, a tuple of arguments, or a dict of named ones.
        warmup: passes before the first that is timed.
        runs: passes that are timed.
        threads: CPU threads that torch may use within one operation.

    Raises:
        InputError: if a number is out of range, or `example_inputs` have no tensor with a batch.
    """
    for name, value, least in (("warmup", warmup, 0), ("runs", runs, 1), ("threads", threads, 1)):
        whole(name, value, least, WHOLE)
    device = device_of(model)
    call = call_of(example_inputs, device)
    finish = _finisher(device)
    seconds = []
    with evaluating(model), torch.inference_mode(), using_threads(threads):
        for _ in range(warmup):
            call(model)
        for _ in range(runs):
            finish()
            start = perf_counter()
            call(model)
            finish()
            seconds.append(perf_counter() - start)
    p10, median, p90 = np.percentile(seconds, [10, 50, 90]).tolist()
    return Latency(
        median=median,
        mean=sum(seconds) / runs,
        p10=p10,
        p90=p90,
        min=min(seconds),
        max=max(seconds),
        runs=runs,
        threads=threads,
        batch=call.batch,
    )


def _finisher(device: torch.device) -> Callable[[], None]:
    """What waits until all work that `device` was given is done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """So many CPU threads within one operation of torch; afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def peak_memory(model: nn.Module, example_inputs: Inputs) -> int:
    """The most bytes that tensors made during one forward pass take at the same time.

    Weights, buffers and inputs were there before and are **not** in it: `state_bytes` gives the weights. The
    model runs in evaluation mode without gradients, so an activation is freed as soon as nothing refers to
    it, as in inference. On the CPU the number is exact for tensors and the same each time; scratch space
    inside a kernel is not seen. On CUDA it is the allocator's own peak above what was allocated before,
    scratch space included; the allocator's peak statistics are reset.

    Raises:
        InputError: if `example_inputs` have no tensor with a batch.
    """
    device = device_of(model)
    call = call_of(example_inputs, device)
    # Not inference mode: that would hide the tensors that composite operations make on their way.
    with evaluating(model), torch.no_grad():
        if device.type == "cuda":
            return _allocator_peak(model, call, device)
        live = _LiveStorages()
        with live:
            call(model)
        return live.peak


def _allocator_peak(model: nn.Module, call: PassInputs, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call(model)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _LiveStorages(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every storage that an operation allocates until it is freed."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._live: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        # What an operation was given existed before, even if it comes out again as a view or in place.
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._live:
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._live.values()))
        return result


def _storages(values: Any) -> Iterable[torch.UntypedStorage]:
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout == torch.strided:
            yield value.untyped_storage()


def state_bytes(model: nn.Module) -> int:
    """Bytes of the model's state_dict, parameters and buffers, as it is stored without compression.

    Zeros count like any other value. What is shared counts once: tensors that are the same view of one
    storage, and overlapping views never more than their storage. A slice of a larger storage counts as its
    own entries only. A sparse tensor counts its indices and values.
    """
    views: dict[int, dict[tuple[object, ...], int]] = defaultdict(dict)
    limits: dict[int, int] = {}
    for value in model.state_dict().values():
        if isinstance(value, Tensor):
            for tensor in _dense_parts(value):
                storage = tensor.untyped_storage()
                view = (tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype)
                views[storage.data_ptr()][view] = tensor.numel() * tensor.element_size()
                limits[storage.data_ptr()] = storage.nbytes()
    return sum(min(sum(found.values()), limits[pointer]) for pointer, found in views.items())


def _dense_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a tensor's entries: itself, or the indices and values of a sparse one."""
    if tensor.layout == torch.strided:
        yield tensor
    elif tensor.layout == torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (tensor.crow_indices(), tensor.col_indices(), tensor.values())
    else:
        yield from (tensor.ccol_indices(), tensor.row_indices(), tensor.values())
