"""Bytes of a model's stored state, and of the activations of one forward pass at their peak."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from prunekit.measure._running import ExampleInputs, arguments, device_of, evaluating


def peak_memory(model: nn.Module, example_inputs: ExampleInputs) -> int:
    """The most bytes that tensors made during one forward pass take at the same time.

    Weights, buffers and inputs were there before and are **not** in it: `state_bytes` gives the weights. The
    model runs in evaluation mode without gradients, so an activation is freed as soon as nothing refers to
    it, as in inference. On the CPU the figure is exact for tensors and the same each time; scratch space
    inside a kernel is not seen. On CUDA it is the allocator's own peak above what was allocated before,
    scratch space included; the allocator's peak statistics are reset.

    Raises:
        InputError: if `example_inputs` are not tensors with a batch.
    """
    device = device_of(model)
    inputs = arguments(example_inputs, device)
    # Not inference mode: that would hide the tensors that composite operations make on their way.
    with evaluating(model), torch.no_grad():
        if device.type == "cuda":
            return _allocator_peak(model, inputs, device)
        live = _LiveStorages()
        with live:
            model(*inputs)
        return live.peak


def _allocator_peak(model: nn.Module, inputs: tuple[Tensor, ...], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    model(*inputs)
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
