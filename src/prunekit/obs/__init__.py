"""Removing weights with the rest of their row making up for it: the mathematics of OBS.

Everything here works on one matrix: the Hessian (1/2 of its quadratic form is the error) that all rows of a
layer share, or that of a whole small network with its weights as the only row.
"""

from prunekit.obs.least_squares import (
    damped,
    damped_groups,
    inverse_of,
    live_inputs,
    recursive_inverse,
    refit,
    shared_saliency,
    shared_update,
)
from prunekit.obs.mask_search import (
    admm_support,
    choose_count,
    choose_mask,
    choose_pattern,
    inverse_factor,
    left_to_right,
)
from prunekit.obs.rate_aware import Grid, RowsOnGrid, rate_aware
from prunekit.obs.row_elimination import RowElimination, eliminate, output_variance, removal_scores

__all__ = [
    "Grid",
    "RowElimination",
    "RowsOnGrid",
    "admm_support",
    "choose_count",
    "choose_mask",
    "choose_pattern",
    "damped",
    "damped_groups",
    "eliminate",
    "inverse_factor",
    "inverse_of",
    "left_to_right",
    "live_inputs",
    "output_variance",
    "rate_aware",
    "recursive_inverse",
    "refit",
    "removal_scores",
    "shared_saliency",
    "shared_update",
]
