"""Sharing examples out over processes of this machine: nothing is sent, they are copies of this one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from prunekit.errors import InputError, PrunekitError
from prunekit.worker import end_with_parent

Part = Callable[[slice], Mapping[str, Tensor]]
"""The means over a slice of the examples, by name."""


def parallel_map(part: Part, inputs: Tensor, processes: int) -> dict[str, Tensor]:
    """The means over all examples, from those of as many slices as there are processes, each on one thread.

    The processes are forked, as those of torch's loaders are, so that no network has to be sent.

    Raises:
        InputError: for less than one process, an accelerator, or a system that cannot fork.
        PrunekitError: if a process ends without a result.
    """
    if processes < 1:
        raise InputError(f"processes = {processes}: at least one is needed")
    if inputs.device.type != "cpu" or "fork" not in multiprocessing.get_all_start_methods():
        raise InputError(
            f"processes = {processes}: only on a processor, and where processes can be forked; use 1"
        )
    processes = min(processes, len(inputs))
    context = multiprocessing.get_context("fork")
    bounds = [len(inputs) * k // processes for k in range(processes + 1)]
    slices = [slice(bounds[k], bounds[k + 1]) for k in range(processes)]
    sizes = {name: len(values) for name, values in part(slice(0, 1)).items()}  # also refuses what is wrong
    results = torch.zeros(processes, sum(sizes.values()), dtype=torch.float64)
    results.share_memory_()  # type: ignore[no-untyped-call]

    def work(number: int) -> None:
        end_with_parent()  # a worker of a study can be killed, and so can this one's parent
        torch.set_num_threads(1)
        results[number] = torch.cat(list(part(slices[number]).values()))

    workers = [context.Process(target=work, args=(number,), daemon=True) for number in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise PrunekitError(f"one of {processes} processes ended without a result")
    counts = torch.tensor([each.stop - each.start for each in slices], dtype=torch.float64)
    means = (results * counts[:, None]).sum(0) / len(inputs)
    found = torch.split(means, list(sizes.values()))
    return dict(zip(sizes, found, strict=True))
