"""Units chosen by their neighbours (FPGM), and by the output of the layers that read them (ThiNet)."""

from __future__ import annotations

import torch
from torch import Tensor


def contribution_products(weight: Tensor, moments: Tensor, unit_of: Tensor, units: int) -> Tensor:
    """What pairs of units add to the square of a layer's output.

    The output is a sum of one contribution per unit that the layer reads, `c_i = W_i x_i`. Luo et al. 2017
    (arXiv 1707.06342) sample outputs and hold their contributions in a matrix X, of which only `X^T X` is
    needed. That product is a sum over the second moments of the layer's inputs, so every output at every
    position counts here, and nothing has to be sampled.

    Args:
        weight: (groups, outputs, columns) the layer's weights, see `rows_of`.
        moments: (groups, columns, columns) second moments E[x x'] of its inputs.
        unit_of: (groups, columns) int64, the unit that each column belongs to; -1 for none.
        units: how many there are.

    Returns:
        (units, units): `G_ij = E[c_i . c_j]`, summed over the outputs.
    """
    found = weight.new_zeros(units, units)
    for rows, second, unit in zip(weight, moments, unit_of, strict=True):
        at = (unit >= 0).nonzero().flatten()
        chosen = rows[:, at]
        blocks = (chosen.T @ chosen) * second[at][:, at]
        half = weight.new_zeros(units, len(at)).index_add_(0, unit[at], blocks)
        found.index_add_(1, unit[at], half)
    return found


def greedy_order(products: Tensor, alive: Tensor) -> Tensor:
    """The order in which units go: each time the one that adds least to the square of what is lost.

    Args:
        products: (units, units), see `contribution_products`.
        alive: (units,) flags; those that are off already are part of what is lost.

    Returns:
        (units,) int64: the place of each unit in the order; -1 for those that are off. Ties go by position.
    """
    places = torch.full((len(products),), -1, dtype=torch.int64)
    left = alive.cpu().clone()
    products = products.cpu()
    # the lost units' contributions at the start are zero: off units add nothing to the next layer
    lost = torch.zeros(len(products), dtype=products.dtype)
    for place in range(int(left.sum())):
        added = (products.diagonal() + 2 * lost).masked_fill(~left, torch.inf)
        unit = int(added.argmin())
        places[unit] = place
        left[unit] = False
        lost += products[:, unit]
    return places


def best_scales(products: Tensor, kept: Tensor) -> Tensor:
    """The factor for each kept unit with which the next layer's output is nearest to what it was.

    Least squares on the contributions, `G_KK s = G_K. 1`; the smallest change where the data leave a choice.

    Args:
        products: (units, units), see `contribution_products`.
        kept: (units,) flags.

    Returns:
        (units,) factors, 1 for units that are not kept.
    """
    places = kept.nonzero().flatten()
    scales = torch.ones(len(products), dtype=products.dtype, device=products.device)
    if not len(places):
        return scales
    square = products[places][:, places]
    # solved for the change from 1, so that units that never act keep their factor
    missing = products[places].sum(1) - square.sum(1)
    limit = len(places) * torch.finfo(products.dtype).eps
    change = torch.linalg.lstsq(
        square.cpu(), missing.cpu().unsqueeze(1), rcond=limit, driver="gelsd"
    ).solution
    scales[places] += change.flatten().to(scales.device)
    return scales


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
