"""Layers, and rows of layers, solved by one process each, and what they find sent to all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from prunekit.distributed.collectives import from_process, processes, rank, refuse_together
from prunekit.errors import PrunekitError

Owners = Mapping[str, int]
"""By layer, the process that solves it. A layer that has none is solved by every process for itself."""


def deal(costs: Mapping[str, float], count: int) -> dict[str, int]:
    """Each layer's process: the dearest layer first, each to the process with the least to do so far.

    No process gets more than 4/3 of the least that is possible (Graham 1969, doi 10.1137/0117039). Equal
    costs go by position.

    Args:
        costs: of each layer, in any unit.
        count: of processes.
    """
    loads = [0.0] * count
    owners = {}
    for name in sorted(costs, key=lambda each: -costs[each]):
        owner = loads.index(min(loads))
        loads[owner] += costs[name]
        owners[name] = owner
    return owners


def shared_layers(
    names: Iterable[str], owners: Owners, solve: Callable[[str], Tensor], empty: Callable[[str], Tensor]
) -> dict[str, Tensor]:
    """What `solve` finds for every layer, on all processes; each is solved by its owner alone.

    Args:
        names: of the layers, the same on all processes.
        owners: by layer; one without an owner is solved by all.
        solve: from a layer to what is found.
        empty: from a layer to a tensor of the shape, type and device of that, whatever its values.

    Raises:
        PrunekitError: what `solve` raises, on all processes.
    """
    names = list(names)
    if not any(name in owners for name in names):
        return {name: solve(name) for name in names}
    found: dict[str, Tensor] = {}

    def solve_own() -> None:
        for name in names:
            if owners.get(name, rank()) == rank():
                found[name] = solve(name).contiguous()

    _together(solve_own, empty(names[0]).device)
    for name in names:
        if name in owners:
            found.setdefault(name, empty(name).contiguous())
            from_process([found[name]], owners[name])
    return {name: found[name] for name in names}


def shared_rows(found: Tensor, solve: Callable[[slice], Tensor]) -> Tensor:
    """What `solve` finds for all rows, on all processes; each solves some of them, in one piece.

    Args:
        found: (rows, ...) a tensor in one piece for the results, which is filled.
        solve: from rows to what is found for them; it is not asked for none.

    Raises:
        PrunekitError: what `solve` raises, on all processes.
    """
    bounds = [len(found) * number // processes() for number in range(processes() + 1)]
    parts = [slice(*pair) for pair in pairwise(bounds)]
    own = parts[rank()]

    def solve_own() -> None:
        if own.stop > own.start:
            found[own] = solve(own)

    _together(solve_own, found.device)
    for owner, part in enumerate(parts):
        if part.stop > part.start:
            from_process([found[part]], owner)
    return found


def _together(work: Callable[[], None], device: torch.device) -> None:
    """Do this process's part; what one cannot do, none goes on from."""
    wrong = None
    try:
        work()
    except PrunekitError as error:
        wrong = error
    refuse_together(wrong, device)
