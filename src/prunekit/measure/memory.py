"""How much memory the activations of one forward pass take."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
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
