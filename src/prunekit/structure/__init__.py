"""Which units of a network can be taken out, and taking them out, with the proof."""

from prunekit.structure.chain import INPUT, Chain, Stage, UnitGroup, chain_of

__all__ = ["INPUT", "Chain", "Stage", "UnitGroup", "chain_of"]
