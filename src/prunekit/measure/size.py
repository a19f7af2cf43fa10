"""How many bytes a model takes when its state is stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import Tensor, nn


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
