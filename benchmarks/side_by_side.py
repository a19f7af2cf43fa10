"""Timing several ways of doing a thing in one run, so that the machine's drift hits all of them alike."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def measure(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each way in each round; one round beforehand is not counted.

    The order turns from round to round, so that none always runs after the same other.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(rounds + 1):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            began = time.process_time()
            ways[name]()
            if number:
                seconds[name].append(time.process_time() - began)
    return seconds


def ratio(seconds: Mapping[str, list[float]], way: str, reference: str) -> dict[str, float]:
    """Median, least and greatest of the round-by-round ratios of two ways."""
    ratios = [a / b for a, b in zip(seconds[way], seconds[reference], strict=True)]
    return {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
    }


def arguments(description: str, rounds: int) -> argparse.Namespace:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"rounds that count ({rounds})")
    return parser.parse_args()


def finish(options: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Print the figures, and write them beside the machine if a file is named."""
    text = json.dumps({"machine": machine(), "rounds": options.rounds, **figures}, indent=1)
    print(text)
    if options.json is not None:
        options.json.write_text(text + "\n", encoding="utf-8")


def resident(which: str) -> int:
    """Bytes of memory of this process (Linux): `VmRSS` now, `VmHWM` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def alone(target: Any, *arguments: Any) -> Any:
    """What a function puts into a queue, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
