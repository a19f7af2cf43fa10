"""Weights as few bytes: shared values and codes for them, positions, entropy coding. Knows arrays alone."""

from prunekit.compress.codebook import Quantized, choose_rates, on_grid, optimal_kmeans, published_kmeans
from prunekit.compress.coder import decode_levels, encode_levels, measure_levels
from prunekit.compress.gaps import decode_gaps, encode_gaps
from prunekit.compress.unit_order import order_by_counts, order_units, regroup

__all__ = [
    "Quantized",
    "choose_rates",
    "decode_gaps",
    "decode_levels",
    "encode_gaps",
    "encode_levels",
    "measure_levels",
    "on_grid",
    "optimal_kmeans",
    "order_by_counts",
    "order_units",
    "published_kmeans",
    "regroup",
]
