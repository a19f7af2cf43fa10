"""Which units of a network can be taken out, and taking them out, with the proof."""

from prunekit.structure.dead_units import DeadUnits, dead_units, shrink_dead
from prunekit.structure.shrinking import shrink_pieces
from prunekit.structure.units import kept_all, parameters_after, unit_masks

__all__ = [
    "DeadUnits",
    "dead_units",
    "kept_all",
    "parameters_after",
    "shrink_dead",
    "shrink_pieces",
    "unit_masks",
]
