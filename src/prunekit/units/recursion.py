"""The published back-propagation of the diagonal of the second derivatives, and how far it is off."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.graph.chain import Chain
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_runner import ActivationCache, ChainRunner
from prunekit.units.curvature import adjoints, by_gain, error_diagonal
from prunekit.units.gains import GainDerivatives, gain_derivatives
from prunekit.units.layers import weight_of, with_gains
from prunekit.units.loss_delta import ERRORS, AnyErrorDelta, error_of, loss_delta
from prunekit.units.means import check_examples, checked_kept, empty
from prunekit.units.runner import BUDGET_BYTES, Structure

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
    it is off for every error; `deviations` says by how much.

    It is for paths only: a layer's diagonal follows from that of the next layer's inputs, one by one. Where
    two branches of one unit meet again, the product of their slopes is a term of the unit's own second
    derivative, and a diagonal does not hold it; the exact form takes all of it.

    Args:
        chain: linear layers and pointwise activations, behind whatever feeds the first of them; in evaluation
            mode.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: one of `ERRORS` or its name; results are for the mean over the examples.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Raises:
        InputError: for an error or a network that the recursion is not written for, and for data or kept
            units that do not fit the network.
    """
    if not isinstance(chain, Chain):
        raise InputError(NO_RECURSION)
    error = error_of(error)
    kept = checked_kept(chain, kept)
    check_examples(inputs, targets)
    with evaluating(*chain.modules), torch.no_grad():
        flow = ChainRunner(chain, inputs[:1])
        for link in flow.links:
            if not link.flat or link.group.repeat > 1:
                raise InputError(
                    f"the recursion is for linear layers with activations between; the units of "
                    f"{link.group.name!r} are followed by something else"
                )
        firsts = [empty(link.group.units, inputs.device) for link in flow.links]
        seconds = [empty(link.group.units, inputs.device) for link in flow.links]
        for chunk in flow.chunks(len(inputs), budget_bytes):
            now = ActivationCache(flow, inputs[chunk], kept)
            judged = loss_delta(error, now.outputs, targets[chunk])
            if isinstance(judged, AnyErrorDelta):
                raise InputError(f"the recursion is for the errors {', '.join(ERRORS)} and class numbers")
            around = adjoints(now, error, targets[chunk])
            curved = error_diagonal(judged)  # d2E/do2
            for place in reversed(range(len(flow.links))):
                at, link = around[place], flow.links[place]
                if at.slope is not None:
                    curved = curved * at.slope.square()
                if at.bend is not None:
                    curved = curved + at.a * at.bend
                curved = weight_of(link.consumer).square().T @ curved
                firsts[place] += by_gain(now, place, at.x)
                seconds[place] += (now.x[place].square() * curved).sum(1, dtype=torch.float64)
                if link.group.name in kept:
                    curved = with_gains(curved, link.group, 0, kept[link.group.name])
    found = {}
    for link, first, second in zip(flow.links, firsts, seconds, strict=True):
        if link.group.name in kept:
            first[~kept[link.group.name]] = second[~kept[link.group.name]] = torch.nan
        found[link.group.name] = GainDerivatives(first / len(inputs), second / len(inputs))
    return found


@dataclass(frozen=True)
class RecursionDeviation:
    """How far the recursion's second derivatives of one group are from the exact ones.

    Attributes:
        overall: the sum of |recursion - exact| over the units, as a fraction of the sum of |exact|.
        median: the median over the units of |recursion - exact| / |exact|.
        worst: the greatest of these.
    """

    overall: float
    median: float
    worst: float


def deviations(
    chain: Structure,
    inputs: Tensor,
    targets: Tensor,
    error: Loss | str,
    *,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, RecursionDeviation]:
    """By group, front to back: how far `diagonal_recursion` is from `gain_derivatives`.

    The arguments and what is raised are those of `diagonal_recursion`.
    """
    published = diagonal_recursion(chain, inputs, targets, error, kept=kept, budget_bytes=budget_bytes)
    exact = gain_derivatives(chain, inputs, targets, error, kept=kept, budget_bytes=budget_bytes)
    found = {}
    for name, each in published.items():
        assert each.second is not None
        true = exact[name].second
        assert true is not None
        on = ~true.isnan()
        off_by, size = (each.second - true)[on].abs(), true[on].abs()
        relative = off_by / size.clamp_min(torch.finfo(torch.float64).tiny)
        relative[off_by == 0] = 0.0
        if not len(relative):
            found[name] = RecursionDeviation(0.0, 0.0, 0.0)
            continue
        overall = float(off_by.sum() / size.sum()) if float(size.sum()) else float(off_by.sum() > 0)
        found[name] = RecursionDeviation(overall, float(relative.median()), float(relative.max()))
    return found
