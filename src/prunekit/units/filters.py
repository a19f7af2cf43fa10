"""What filters are worth by their neighbours, by their batch norm, and by a Taylor series per feature map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from prunekit.graph.chain import Chain
from prunekit.graph.rows import LAYERS
from prunekit.losses import Loss
from prunekit.modes import evaluating
from prunekit.units.chain_runner import ActivationCache, ChainRunner
from prunekit.units.curvature import adjoints
from prunekit.units.layers import by_unit, unit_dim
from prunekit.units.loss_delta import error_of
from prunekit.units.means import check_examples, checked_kept, empty
from prunekit.units.runner import BUDGET_BYTES


def distances(weight: Tensor, kept: Tensor) -> Tensor:
    """The sum of each filter's distances to the layer's other filters: small near their geometric median.

    He et al. 2019 (FPGM), arXiv 1811.00250: such a filter is the one that the others can replace.

    Args:
        weight: (units, ...).
        kept: (units,) flags; filters that are off are nobody's neighbours.

    Returns:
        (units,) float64; 0 for those that are off.
    """
    rows = weight.detach().double().flatten(1)
    found = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    alive = rows[kept]
    # the direct form: the faster one loses the digits of small distances
    found[kept] = torch.cdist(alive, alive, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
    return found


def feature_taylor(
    chain: Chain,
    inputs: Tensor,
    targets: Tensor,
    error: Loss | str,
    *,
    kept: Mapping[str, Tensor] | None = None,
    budget_bytes: int = BUDGET_BYTES,
) -> dict[str, Tensor]:
    """The mean over examples of |the mean over positions of dC/dz z| for every unit, C an example's error.

    Molchanov et al. 2017, arXiv 1611.06440. z is what the next layer reads of the unit, behind the activation
    and any pooling. Unlike the first-order change of the gain, effects of opposite sign on different examples
    do not cancel.

    Args:
        chain: the network, seen in evaluation mode.
        inputs: (N, ...), on the network's device.
        targets: (N, ...) as the error takes them.
        error: (outputs, targets) -> the mean over the examples, or a name of `ERRORS`.
        kept: by group (units,) booleans, False for units that are off already.
        budget_bytes: memory for activations.

    Returns:
        By group (units,) float64; NaN for units that are off.

    Raises:
        InputError: for data or kept units that do not fit the network.
    """
    error = error_of(error)
    kept = checked_kept(chain, kept)
    check_examples(inputs, targets)
    with evaluating(*chain.modules), torch.no_grad():
        flow = ChainRunner(chain, inputs[:1])
        sums = [empty(link.group.units, inputs.device) for link in flow.links]
        for chunk in flow.chunks(len(inputs), budget_bytes):
            now = ActivationCache(flow, inputs[chunk], kept)
            around = adjoints(now, error, targets[chunk])
            for place, (link, total) in enumerate(zip(flow.links, sums, strict=True)):
                x = now.x[place]
                dim = 0 if link.flat else unit_dim(link.consumer, x)
                product = by_unit(x * around[place].x, link.group, dim).movedim(dim, 0)
                # (units, repeat, n) for flat links, else (units, n, positions..., repeat, positions...)
                each = product.mean(1) if link.flat else product.flatten(2).mean(2)
                total += each.abs().sum(1, dtype=torch.float64)
    found = {}
    for link, total in zip(flow.links, sums, strict=True):
        off = ~kept.get(link.group.name, torch.ones_like(total, dtype=torch.bool))
        found[link.group.name] = (total / len(inputs)).masked_fill(off, torch.nan)
    return found


def unit_macs(chain: Chain, example: Tensor) -> dict[str, Tensor]:
    """The multiply-accumulate operations that go with one unit, in its own layer and in the next.

    Args:
        chain: the network, all of whose units count.
        example: (1, ...) one of its inputs.

    Returns:
        By group (units,) float64, the same for each of its units.
    """
    macs: dict[str, float] = {}
    x = example
    with evaluating(*chain.modules), torch.no_grad():
        for stage in chain.stages:
            x = stage.run(x)
            if isinstance(stage.module, LAYERS):
                weight = stage.module.weight
                outputs = x.numel() // len(weight)  # positions: each weight acts once at each
                macs[stage.name] = float(weight.numel() * outputs)
    return {
        group.name: torch.full(
            (group.units,),
            sum(macs[layer] for layer in (group.producer, group.consumer) if layer in macs) / group.units,
            dtype=torch.float64,
        )
        for group in chain.groups
    }
