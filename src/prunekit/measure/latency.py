"""The time of one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.measure._running import ExampleInputs, arguments, device_of, evaluating


@dataclass(frozen=True)
class Latency:
    """Wall-clock seconds of one forward pass of `batch` examples, over `runs` passes.

    The median is the figure to quote. `p10` and `p90` are percentiles, interpolated linearly.
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


def latency(
    model: nn.Module,
    example_inputs: ExampleInputs,
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
        example_inputs: the tensor, or the tuple of tensors, of one pass.
        warmup: passes before the first that is timed.
        runs: passes that are timed.
        threads: CPU threads that torch may use within one operation.

    Raises:
        InputError: if a number is out of range, or `example_inputs` are not tensors with a batch.
    """
    for name, value, least in (("warmup", warmup, 0), ("runs", runs, 1), ("threads", threads, 1)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    device = device_of(model)
    inputs = arguments(example_inputs, device)
    finish = _finisher(device)
    seconds = []
    with evaluating(model), torch.inference_mode(), _threads(threads):
        for _ in range(warmup):
            model(*inputs)
        for _ in range(runs):
            finish()
            start = perf_counter()
            model(*inputs)
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
        batch=len(inputs[0]),
    )


def _finisher(device: torch.device) -> Callable[[], None]:
    """What waits until all work that `device` was given is done."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
