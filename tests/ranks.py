"""Functions run by several processes of one gloo group, and what each of them returns."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_gloo = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch is built without gloo"
)

# the processes are forked from one that has loaded all this, and do not load it each for itself
_LOADED = [
    "ranks",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "prunekit.methods",
    "prunekit.pruning",
    "prunekit.training",
]
multiprocessing.set_forkserver_preload(_LOADED)


def on_ranks(work: Callable[[int], Any], count: int = 2, returning: Sequence[int] | None = None) -> list[Any]:
    """What `work(rank)`, a function of a module, returns on each rank, or those that return: plain values."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, (work, count, folder), nprocs=count, start_method="forkserver")
        return [
            torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in returning or range(count)
        ]


def _process(rank: int, work: Callable[[int], Any], count: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank), f"{folder}/{rank}.pt")
    # DDP's reducer keeps the group's threads alive; one that lets go of a tensor while the interpreter is
    # taken down is ended by Python and takes the process with it ("terminate called without an active
    # exception"), now and then. Everything is written, so the process leaves without taking it down.
    os._exit(0)
