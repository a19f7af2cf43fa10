"""Weights as few bytes: shared values and codes for them, positions, entropy coding. Knows arrays alone."""

from prunekit.compress.codebook import Quantized, choose_rates, on_grid, optimal_kmeans, published_kmeans

__all__ = [
    "Quantized",
    "choose_rates",
    "on_grid",
    "optimal_kmeans",
    "published_kmeans",
]
