"""The time of a forward pass by kinds of layers."""

from __future__ import annotations

from collections import defaultdict
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.batches import Inputs
from prunekit.measure.forward_pass import call_of, using_threads
from prunekit.modes import evaluating
from prunekit.settings import WHOLE, whole
from prunekit.targets import device_of

OTHER = "other"
"""What is not within a layer: functions that a network calls itself, and Python."""


def layer_times(
    model: nn.Module, example_inputs: Inputs, *, warmup: int = 3, runs: int = 20, threads: int = 1
) -> dict[str, float]:
    """Seconds of one forward pass in evaluation mode by kinds of layers, medians over passes.

    Timed is each call of a module without modules in it, on the CPU; what a pass takes besides is `OTHER`.
    The clocks take time themselves, about a microsecond a layer: the whole pass is timed by `latency`.

    Args:
        model: the network, on the CPU.
        example_inputs: those of one pass: a tensor, a tuple of arguments, or a dict of named ones.
        warmup: passes before the first that is timed.
        runs: passes that are timed.
        threads: CPU threads that torch may use within one operation.

    Returns:
        By class of the layers, such as `Conv2d`, the longest first, `OTHER` last.

    Raises:
        InputError: if a number is out of range, or `example_inputs` have no tensor with a batch.
    """
    for name, value, least in (("warmup", warmup, 0), ("runs", runs, 1), ("threads", threads, 1)):
        whole(name, value, least, WHOLE)
    call = call_of(example_inputs, device_of(model))
    passes: list[dict[str, float]] = []
    starts: list[float] = []

    def begin(module: nn.Module, *_: Any) -> None:
        starts.append(perf_counter())

    def end(module: nn.Module, *_: Any) -> None:
        passes[-1][type(module).__name__] += perf_counter() - starts.pop()

    layers = [module for module in model.modules() if not any(True for _ in module.children())]
    handles = [each.register_forward_pre_hook(begin, prepend=True) for each in layers]
    handles += [each.register_forward_hook(end) for each in layers]
    try:
        with evaluating(model), torch.inference_mode(), using_threads(threads):
            for _ in range(warmup + runs):
                passes.append(defaultdict(float))
                start = perf_counter()
                call(model)
                passes[-1][OTHER] = perf_counter() - start - sum(passes[-1].values())
    finally:
        for handle in handles:
            handle.remove()
    timed = passes[warmup:]
    kinds = dict.fromkeys(kind for each in timed for kind in each if kind != OTHER)
    found = {kind: float(np.median([each[kind] for each in timed])) for kind in (*kinds, OTHER)}
    return dict(sorted(found.items(), key=lambda each: (each[0] == OTHER, -each[1])))
