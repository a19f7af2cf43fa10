"""Means over the examples of what is measured on runs of a network, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.errors import InputError
from prunekit.graph.capture import Inputs
from prunekit.graph.chain import Chain
from prunekit.graph.surgery import check_flags
from prunekit.losses import Loss
from prunekit.units.chain_runner import ChainRunner
from prunekit.units.graph_runner import GraphRunner
from prunekit.units.loss_delta import LossDelta, error_of, loss_delta
from prunekit.units.runner import Run, Runner, Structure

Measure = Callable[[Run, LossDelta], Mapping[str, Tensor]]
"""By name what a chunk adds up to, in float64, from its run and the errors of its outputs."""


def means(
    structure: Structure,
    inputs: Inputs,
    targets: Tensor,
    error: Loss | str,
    measure: Measure,
    *,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int,
) -> dict[str, Tensor]:
    """The mean over the examples of what is measured on each chunk of them; in evaluation mode.

    Args:
        structure: the units.
        inputs: (N, ...) examples.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        measure: sums over the examples of a chunk.
        groups: the groups that will be asked for, if not all.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """
    error, kept = error_of(error), checked_kept(structure, kept)
    count = check_examples(inputs, targets)
    runner = runner_of(structure, inputs, groups)
    sums: dict[str, Tensor] = {}
    with runner.evaluating(), torch.no_grad():
        for chunk in runner.chunks(count, budget_bytes):
            run = runner.run(taken(inputs, chunk), kept)
            for name, each in measure(run, loss_delta(error, run.outputs, targets[chunk])).items():
                sums[name] = sums[name] + each if name in sums else each
    return {name: total / count for name, total in sums.items()}


def runner_of(structure: Structure, inputs: Inputs, groups: Sequence[str] | None = None) -> Runner:
    """What runs a network fastest: behind each unit only on a chain, from each change on in any other.

    Args:
        structure: the units.
        inputs: examples, of which the first will be looked at.
        groups: the groups that will be asked for, if not all.
    """
    if isinstance(structure, Chain):
        return ChainRunner(structure, taken(inputs, slice(0, 1)), groups)
    return GraphRunner(structure, groups)


def checked_kept(structure: Structure, kept: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """By group (units,) booleans, copied.

    Raises:
        InputError: for a group that there is not, or a wrong length or type.
    """
    found = {}
    for name, each in (kept or {}).items():
        check_flags(name, each, structure.group(name).units, allow_empty=True)
        found[name] = each.clone()
    return found


def check_examples(inputs: Inputs, targets: Tensor) -> int:
    """How many examples there are.

    Raises:
        InputError: if there are not as many inputs as targets, or none.
    """
    shapes = [tuple(each.shape) for each in pytree.tree_leaves(inputs) if isinstance(each, Tensor)]
    if not shapes or targets.dim() < 1 or any(not shape or shape[0] != len(targets) for shape in shapes):
        found = ", ".join(map(str, shapes)) or "no tensor"
        raise InputError(
            "inputs (N, ...) and targets (N, ...) must have the same first dimension, "
            f"got the shapes {found} and {tuple(targets.shape)}"
        )
    if len(targets) == 0:
        raise InputError("there are no examples to judge units by")
    return len(targets)


def taken(inputs: Any, examples: slice) -> Any:
    """Some of the examples: those of each tensor among a network's inputs."""
    return pytree.tree_map(lambda each: each[examples] if isinstance(each, Tensor) else each, inputs)


def empty(units: int, device: torch.device) -> Tensor:
    """(units,) zeros in float64 to add to."""
    return torch.zeros(units, dtype=torch.float64, device=device)
