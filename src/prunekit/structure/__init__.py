"""Which units of a network can be taken out, and taking them out, with the proof."""

from prunekit.graph.chain import Chain, UnitGroup
from prunekit.graph.chain_stages import Stage
from prunekit.graph.chain_view import chain_of, is_chain
from prunekit.graph.deviation import Deviation, VerificationError
from prunekit.graph.groups import INPUT
from prunekit.graph.proof import same_function
from prunekit.graph.shrinking import GroupSize, ShrinkResult
from prunekit.structure.dead_units import DeadUnits, dead_units, shrink_dead
from prunekit.structure.shrinking import shrink_pieces
from prunekit.structure.units import kept_all, parameters_after, unit_masks

__all__ = [
    "INPUT",
    "Chain",
    "DeadUnits",
    "Deviation",
    "GroupSize",
    "ShrinkResult",
    "Stage",
    "UnitGroup",
    "VerificationError",
    "chain_of",
    "dead_units",
    "is_chain",
    "kept_all",
    "parameters_after",
    "same_function",
    "shrink_dead",
    "shrink_pieces",
    "unit_masks",
]
