"""What filters are worth by their neighbours."""

from __future__ import annotations

import torch
from torch import Tensor


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
