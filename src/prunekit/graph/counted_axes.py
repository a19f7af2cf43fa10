"""What the settings of a configuration count: the axes of tensors that are others with another number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch

from prunekit.graph.configured import Path

Axis = tuple[str, int]
"""Of a tensor, by its full name; of a module there is only -1, which stands for its class."""
Sizes = dict[Axis, Any]
Counts = dict[Path, set[Axis] | None]
"""For each setting the axes that it counts; None where no other number was possible."""
Build = Callable[[Mapping[Path, int]], Sizes | None]
"""The sizes of the network that is built with some other settings; None where there is none."""


def sizes_of(form: Mapping[str, Any]) -> Sizes:
    """The size of every axis, and the class of every module, of what `form_of` gives."""
    found: Sizes = {}
    for name, value in form.items():
        every = enumerate(value) if isinstance(value, torch.Size) else [(-1, value)]
        found |= {(name, axis): size for axis, size in every}
    return found


def counted_axes(build: Build, before: Sizes, tried: Iterable[Mapping[Path, int]]) -> Counts:
    """What settings count.

    Args:
        build: builds the network.
        before: its sizes with its own settings.
        tried: other numbers of one setting or of several; once is enough for those that count nothing.
    """
    found: Counts = {}
    for numbers in tried:
        _count(build, before, {path: each for path, each in numbers.items() if not found.get(path)}, found)
    return found


def _count(build: Build, before: Sizes, numbers: Mapping[Path, int], found: Counts) -> None:
    """Take down what some settings count; those of each half where it is not clear of which it is."""
    if not numbers:
        return
    after, paths = build(numbers), list(numbers)
    axes = None
    if after is not None:
        axes = {axis for axis in before | after if before.get(axis) != after.get(axis)}
    if len(paths) == 1 or axes == set():
        found.update(dict.fromkeys(paths, axes))
        return
    for half in (paths[: len(paths) // 2], paths[len(paths) // 2 :]):
        _count(build, before, {path: numbers[path] for path in half}, found)


def may_change(counts: Counts, staying: Collection[Axis]) -> set[Path]:
    """The settings that can be others while some axes stay: not one that counts such an axis alone."""
    free = set(counts)
    while True:
        number = Counter(axis for path in free for axis in counts[path] or ())
        held = {
            path for path in free if any(number[axis] == 1 and axis in staying for axis in counts[path] or ())
        }
        if not held:
            return free
        free -= held
