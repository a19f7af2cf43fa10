"""Sums, counts and refusals over the processes of torch.distributed; alone, a process is all of them.

Every function here is called by all processes, in the same order: one that did not would leave the others
waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, distributed

from prunekit.errors import DataError, PrunekitError, first_line

Key = TypeVar("Key")


def processes() -> int:
    """The number of processes that work together: 1 without an initialised process group."""
    return distributed.get_world_size() if together() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if together() else 0


together: Callable[[], bool] = distributed.is_initialized if distributed.is_available() else bool
"""Whether there is a process group: PyTorch's own answer, which is no where it was built without any."""


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add up tensors in place over all processes."""
    if processes() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def sum_to_process(tensor: Tensor, owner: int) -> None:
    """Add up a tensor in place on one process; what it holds on the others afterwards is of no use."""
    if processes() > 1:
        distributed.reduce(tensor, owner)


@torch.no_grad()
def from_process(tensors: Sequence[Tensor], owner: int) -> None:
    """Give tensors in place the values that they have on one process."""
    if processes() == 1:
        return
    for tensor in tensors:
        sent = tensor.detach().contiguous()
        # gloo sends no booleans
        distributed.broadcast(sent.view(torch.uint8) if sent.dtype == torch.bool else sent, owner)
        if sent.data_ptr() != tensor.data_ptr():
            tensor.copy_(sent)


def local_part(tensor: Tensor) -> Tensor:
    """What this process holds of a DTensor, with the same memory; of another tensor, all of it."""
    whole = tensor.detach()
    if not hasattr(whole, "to_local"):  # a DTensor, whose module takes long to import
        return whole
    with torch.no_grad():
        part: Tensor = whole.to_local()
        return part


def means_over_processes(sums: Mapping[Key, Tensor], examples: float) -> dict[Key, Tensor]:
    """Sums over the examples (or terms) of this process as means over those of all."""
    device = next(iter(sums.values())).device
    count = torch.tensor(float(examples), dtype=torch.float64, device=device)
    sum_over_processes([*sums.values(), count])
    return {key: total / count.to(total.dtype) for key, total in sums.items()}


def count_processes(holds: bool, device: torch.device) -> tuple[int, int]:
    """(for how many processes something holds, how many there are)."""
    counted = torch.tensor([float(holds), 1.0], device=device)
    sum_over_processes([counted])
    return int(counted[0]), int(counted[1])


def refuse_together(wrong: PrunekitError | None, device: torch.device) -> None:
    """Refuse what this process cannot take, or another one, with what that one says.

    Raises:
        PrunekitError: what is wrong here.
        DataError: if that is nothing, but something is with another process.
    """
    texts = _texts("" if wrong is None else first_line(wrong), device)
    if wrong is not None:
        raise wrong
    said = next((number for number, text in enumerate(texts) if text), None)
    if said is not None:
        raise DataError(f"process {said} of {len(texts)}: {texts[said]}")


def _texts(own: str, device: torch.device) -> list[str]:
    """What each process says; it is sent as bytes, as objects would have to be unpickled."""
    data = own.encode()
    lengths = torch.zeros(processes(), dtype=torch.int64, device=device)
    lengths[rank()] = len(data)
    sum_over_processes([lengths])
    if not bool(lengths.any()):
        return [""] * len(lengths)
    sent = torch.zeros(len(lengths), int(lengths.max()), dtype=torch.uint8, device=device)
    sent[rank(), : len(data)] = torch.tensor(list(data), dtype=torch.uint8, device=device)
    sum_over_processes([sent])
    return [
        bytes(row[:length].tolist()).decode()
        for row, length in zip(sent.cpu(), lengths.tolist(), strict=True)
    ]


def from_all_processes(number: int, device: torch.device) -> list[int]:
    """A number of each process."""
    found = torch.zeros(processes(), dtype=torch.int64, device=device)
    found[rank()] = number
    sum_over_processes([found])
    return [int(each) for each in found]


def on_processes(some: int, processes: int) -> str:
    """Where something holds, for messages, such as " on 1 of 2 processes"; empty where there is only one."""
    return "" if processes == 1 else f" on {some} of {processes} processes"
