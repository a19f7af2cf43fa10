"""Which units of a network can be taken out, and taking them out, with the proof."""

from prunekit.structure.shrinking import shrink_pieces
from prunekit.structure.units import kept_all, parameters_after, unit_masks

__all__ = [
    "kept_all",
    "parameters_after",
    "shrink_pieces",
    "unit_masks",
]
