"""The error as a function of units' gains, in means over the examples: derivatives, relevance, sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.graph.chain import Chain, weight_of, with_gains
from prunekit.graph.surgery import check_flags
from prunekit.losses import LOSSES, Loss, absolute_error
from prunekit.units.chain_derivatives import adjoints
from prunekit.units.chain_runner import ActivationCache, ChainRunner
from prunekit.units.graph_runner import GraphRunner
from prunekit.units.runner import (
    BUDGET_BYTES,
    Run,
    Runner,
    Structure,
    error_of,
    taken,
)

Measure = Callable[[Run], Mapping[str, Tensor]]
"""By name what a chunk adds up to, in float64, from its run."""

Progress = Callable[[int, int], None]
"""(judged so far, in all), units times examples: called each time some more are."""


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
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """The mean over the examples of what is measured on each chunk of them; in evaluation mode.

    Args:
        structure: the units.
        inputs: (N, ...) examples.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `LOSSES`.
        measure: sums over the examples of a chunk.
        groups: the groups that will be asked for, if not all.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.
        progress: told how far it is.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """
    error, kept = error_of(error), checked_kept(structure, kept)
    count = check_examples(inputs, targets)
    runner = runner_of(structure, inputs, groups, budget_bytes)
    units, before = sum(runner.sizes[name] for name in runner.names), 0
    sums: dict[str, Tensor] = {}
    with runner.evaluating(), torch.no_grad():
        for run in runner.runs(inputs, targets, error, kept):
            if progress is not None:
                run.judged = _Counter(progress, before, len(run.outputs), units * count)
            for name, each in measure(run).items():
                sums[name] = sums[name] + each if name in sums else each
            before += units * len(run.outputs)
            if progress is not None:
                progress(before, units * count)
    return {name: total / count for name, total in sums.items()}


class _Counter:
    """Tells how many units times examples are judged, when some units are on the examples of a chunk."""

    def __init__(self, progress: Progress, before: int, examples: int, total: int) -> None:
        self._progress, self._done, self._examples, self._total = progress, before, examples, total

    def __call__(self, units: int) -> None:
        self._done += units * self._examples
        self._progress(self._done, self._total)


def runner_of(
    structure: Structure, inputs: Inputs, groups: Sequence[str] | None, budget_bytes: int
) -> Runner:
    """What runs a network fastest: behind each unit only on a chain, from each change on in any other.

    Args:
        structure: the units.
        inputs: examples, of which the first will be looked at.
        groups: the groups that will be asked for, if not all.
        budget_bytes: memory for activations.
    """
    if isinstance(structure, Chain):
        return ChainRunner(structure, taken(inputs, slice(0, 1)), groups, budget_bytes)
    return GraphRunner(structure, groups, budget_bytes)


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


DECAY = 0.8
"""What remains of the running relevance at each batch."""


@dataclass(frozen=True)
class GainDerivatives:
    """Derivatives by the gains of a group's units at gain 1; NaN for units that are off.

    Attributes:
        first: (units,) float64: dE/dgain.
        second: (units,) float64: d2E/dgain2, the unit's own only; None if it was not asked for.
    """

    first: Tensor
    second: Tensor | None

    @property
    def first_order(self) -> Tensor:
        """(units,): the predicted E(off) - E(on), ΔE1 = -dE/dgain."""
        return -self.first

    @property
    def second_order(self) -> Tensor:
        """(units,): the predicted E(off) - E(on), ΔE2 = -dE/dgain + 1/2 d2E/dgain2.

        Raises:
            ValueError: if there is no second derivative.
        """
        if self.second is None:
            raise ValueError("the second derivative was not asked for")
        return self.second / 2 - self.first


def gain_derivatives(
    structure: Structure,
    inputs: Inputs,
    targets: Tensor,
    error: Loss | str,
    *,
    second: bool = True,
    groups: Sequence[str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
    progress: Progress | None = None,
) -> dict[str, GainDerivatives]:
    """dE/dgain and the **exact** d2E/dgain2 of every unit, E being the mean over the examples.

    With a the unit's output, dE/dgain is the sum of a dE/da and d2E/dgain2 that of a^2 d2E/da2 and of all the
    products between different examples' positions, none of which is dropped (Wolfe, Sharma and Raj, arXiv
    1701.04465, drop those between units behind: see `diagonal_recursion`). Where an activation has a kink,
    such as ReLU at 0, its second derivative counts as 0.

    Args:
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `LOSSES`.
        second: whether the second derivative is wanted.
        groups: names of the groups wanted; all of them by default.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.
        progress: told how far it is.

    Raises:
        InputError: for data, groups or kept units that do not fit the network.
    """

    def measure(run: Run) -> dict[str, Tensor]:
        found = run.derivatives(run.names, second=second)
        return {
            name: torch.stack([each for each in both if each is not None]) for name, both in found.items()
        }

    sums = means(
        structure,
        inputs,
        targets,
        error,
        measure,
        groups=groups,
        kept=kept,
        budget_bytes=budget_bytes,
        progress=progress,
    )
    return _of_units_on(sums, kept or {})


def _of_units_on(found: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> dict[str, GainDerivatives]:
    """By group, from (1 or 2, units): the first derivative, and the second."""
    for name in kept.keys() & found.keys():
        found[name][:, ~kept[name]] = torch.nan
    return {
        name: GainDerivatives(each[0], each[1] if len(each) > 1 else None) for name, each in found.items()
    }


def relevance(
    structure: Structure,
    batches: Iterable[tuple[Inputs, Tensor]],
    *,
    error: Loss | str = absolute_error,
    decay: float = DECAY,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, Tensor]:
    """The running relevance ρ^ of every unit; the least relevant go first.

    Mozer and Smolensky, "Skeletonization: a technique for trimming the fat from a network via relevance
    assessment", NIPS 1 (1989). ρ = -dE/dgain at gain 1 estimates what the error rises by without the unit. It
    is taken with the linear error sum |t - o|, since the squared error's derivative vanishes as the outputs
    approach the targets, and smoothed over the batches: ρ^ <- 0.8 ρ^ + 0.2 ρ.

    Args:
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        batches: (inputs, targets), on the network's device; class numbers become one-hot.
        error: the mean over the examples of a batch.
        decay: what remains of ρ^ at each batch, in [0, 1).
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        By group (units,) float64; NaN for units that are off.

    Raises:
        InputError: for no batches, a decay outside [0, 1), or data that do not fit the network.
    """
    if not 0 <= decay < 1:
        raise InputError(f"decay must be in [0, 1), got {decay}")
    running: dict[str, Tensor] | None = None
    for inputs, targets in batches:
        found = gain_derivatives(
            structure, inputs, targets, error, second=False, kept=kept, budget_bytes=budget_bytes
        )
        new = {name: each.first_order for name, each in found.items()}
        if running is None:
            running = new
        else:
            running = {name: decay * running[name] + (1 - decay) * new[name] for name in new}
    if running is None:
        raise InputError("there are no batches to take the relevance on")
    return running


def gain_sweep(
    structure: Structure,
    inputs: Inputs,
    targets: Tensor,
    error: Loss | str,
    units: Sequence[tuple[str, int]],
    *,
    gains: Tensor | None = None,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> Tensor:
    """The mean error of the outputs with one unit at a time at each of several gains, all others as they are.

    The error surfaces of Wolfe, Sharma and Raj (arXiv 1701.04465): gain 1 is the unit on, 0 off.

    Args:
        structure: a chain, or coupled groups of any network, seen in evaluation mode.
        inputs: (N, ...), on the network's device; of coupled groups a tuple or dict of arguments, too.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `LOSSES`.
        units: (group, unit) pairs.
        gains: (G,) the grid; by default 0 to 10 in steps of 0.1.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        (len(units), G) float64.

    Raises:
        InputError: for a unit that does not exist or is off, and for data that do not fit the network.
    """
    grid = torch.linspace(0, 10, 101, dtype=torch.float64) if gains is None else gains.double()
    if grid.dim() != 1:
        raise InputError(f"gains must be (G,), got the shape {tuple(grid.shape)}")
    grid = grid.to(targets.device)
    for name, unit in units:
        count = structure.group(name).units
        if not 0 <= unit < count:
            raise InputError(f"the group {name!r} has the units 0 to {count - 1}, there is no {unit}")
        if name in (kept or {}) and not (kept or {})[name][unit]:
            raise InputError(f"unit {unit} of {name!r} is off already")

    def measure(run: Run) -> dict[str, Tensor]:
        errors = grid.new_empty(len(units), len(grid))
        for group in dict.fromkeys(name for name, _ in units):
            rows = [row for row, (name, _) in enumerate(units) if name == group]
            which = torch.tensor([units[row][1] for row in rows], device=grid.device)
            changes = run.weighted(group, which.repeat_interleave(len(grid)), (1 - grid).repeat(len(rows)))
            errors[rows] = changes.view(len(rows), len(grid)) + run.judge.total
        return {"errors": errors}

    groups = [name for name, _ in units]
    return means(
        structure, inputs, targets, error, measure, groups=groups, kept=kept, budget_bytes=budget_bytes
    )["errors"]


NO_RECURSION = (
    "the published recursion takes the diagonal back along a path of linear layers; where branches of a unit "
    "meet again, their products are no part of a diagonal: use form='exact'"
)


def diagonal_recursion(
    chain: Structure,
    inputs: Tensor,
    targets: Tensor,
    error: Loss | str,
    *,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, GainDerivatives]:
    """dE/dgain, and d2E/dgain2 by the recursion of Wolfe, Sharma and Raj (arXiv 1701.04465).

    With x an activation's input, o its output and a_j the outputs of the layer before:
    d2E/dx2 = d2E/do2 σ'^2 + dE/do σ'', d2E/da_j2 = sum_i d2E/dx_i2 w_ji^2, and d2E/dgain_j2 is the sum of
    a_j^2 d2E/da_j2 over the examples. Second derivatives by two different units of one layer are dropped.

    On the last hidden layer that is exact for errors that are a sum over the outputs (squared, linear), since
    their Hessian by x is diagonal. For cross-entropy the recursion starts from the softmax Hessian's diagonal
    p_k (1 - p_k); dropped are the products -p_k p_l, so that it is not exact on any layer. In earlier layers
    it is off for every error; `benchmarks/recursion.py` shows by how much.

    It is for paths only: a layer's diagonal follows from that of the next layer's inputs, one by one. Where
    two branches of one unit meet again, the product of their slopes is a term of the unit's own second
    derivative, and a diagonal does not hold it; the exact form takes all of it.

    Args:
        chain: linear layers and pointwise activations, behind whatever feeds the first of them; in evaluation
            mode.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: one of `LOSSES` or its name; results are for the mean over the examples.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Raises:
        InputError: for an error or a network that the recursion is not written for, and for data or kept
            units that do not fit the network.
    """
    if not isinstance(chain, Chain):
        raise InputError(NO_RECURSION)

    def measure(run: Run) -> dict[str, Tensor]:
        assert isinstance(run, ActivationCache)
        for link in run.links:
            if not link.flat or link.group.repeat > 1:
                raise InputError(
                    f"the recursion is for linear layers with activations between; the units of "
                    f"{link.group.name!r} are followed by something else"
                )
        curved = run.judge.diagonal  # d2E/do2
        if curved is None:
            raise InputError(f"the recursion is for the errors {', '.join(LOSSES)} and class numbers")
        around = adjoints(run)
        found: dict[str, Tensor] = {}
        for place, link in reversed(list(enumerate(run.links))):
            at, name = around[place], link.group.name
            if at.slope is not None:
                curved = curved * at.slope.square()
            if at.bend is not None:
                curved = curved + at.a * at.bend
            curved = weight_of(link.consumer).square().T @ curved
            second = (run.x[place].square() * curved).sum(1, dtype=torch.float64)
            found[name] = torch.stack([at.first, second])
            if name in run.kept:
                curved = with_gains(curved, link.group, 0, run.kept[name])
        return dict(reversed(found.items()))

    sums = means(chain, inputs, targets, error, measure, kept=kept, budget_bytes=budget_bytes)
    return _of_units_on(sums, kept or {})
