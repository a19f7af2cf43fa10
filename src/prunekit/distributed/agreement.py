"""Whether all processes hold the same values, told by digests of their bits."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from prunekit.distributed.collectives import from_process, processes
from prunekit.errors import PrunekitError

_PIECE = 2**22
"""Elements whose bits are summed at once, which bounds the memory for it."""


def trained_as_one(model: nn.Module) -> bool:
    """Whether the processes train one network: its gradients are those of the examples of all of them.

    So it is in DistributedDataParallel and after `fully_shard`.

    Args:
        model: not inside `torch.compile`.
    """
    if processes() == 1:
        return False
    # FSDPModule is told by its name: its module takes long to import
    sharded = "FSDPModule" in {kind.__name__ for kind in type(model).__mro__}
    return sharded or isinstance(model, nn.parallel.DistributedDataParallel)


def check_same(tensors: Mapping[str, Tensor], what: str) -> None:
    """Refuse values that differ from one process to another.

    Args:
        tensors: by the names that the error gives; the same names and shapes on all processes.
        what: they are, and what to do, as the end of a sentence.

    Raises:
        PrunekitError: on all processes, naming the first that differs.
    """
    if processes() == 1 or not tensors:
        return
    device = next(iter(tensors.values())).device
    digests = torch.stack([_digest(each).to(device) for each in tensors.values()])
    low, high = digests.clone(), digests
    distributed.all_reduce(low, distributed.ReduceOp.MIN)
    distributed.all_reduce(high, distributed.ReduceOp.MAX)
    differing = (low != high).any(1).tolist()
    for name, differs in zip(tensors, differing, strict=True):
        if differs:
            raise PrunekitError(f"{name} differs between the {processes()} processes: {what}")


def of_first(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies with the values that the first process has, on all.

    What all have computed from the same sums is equal already, unless their processors round differently.
    """
    copies = {
        name: each.detach().clone(memory_format=torch.contiguous_format) for name, each in tensors.items()
    }
    from_process(list(copies.values()), 0)
    return copies


def _digest(tensor: Tensor) -> Tensor:
    """(2,) int64: the sum of the bits of all elements, and one weighted by their places."""
    whole = tensor.detach().contiguous().flatten()
    bits = whole.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[whole.element_size()])
    found = torch.zeros(2, dtype=torch.int64, device=whole.device)
    for number, piece in enumerate(bits.split(_PIECE)):  # type: ignore[no-untyped-call]
        start = zlib.crc32(str(number).encode())  # so that equal pieces in another order differ
        places = torch.arange(start, start + len(piece), device=piece.device) | 1
        long = piece.long()
        found += torch.stack([long.sum(), (long * places).sum()])
    return found
