"""What is coupled in any network that PyTorch can export, and taking it out with the proof."""

from prunekit.graph.activation_taps import Place, watched
from prunekit.graph.any_size import any_size
from prunekit.graph.branches import BLOCKS, Branch, Branches, captured_blocks, group_of
from prunekit.graph.capture import captured
from prunekit.graph.captured import Captured, GraphModel
from prunekit.graph.chain import Chain, Stage, UnitGroup
from prunekit.graph.chain_view import chain_of
from prunekit.graph.columns import replace_convolutions, shrink_columns
from prunekit.graph.dead_units import DeadUnits, dead_units, shrink_dead, zero_dead
from prunekit.graph.depth import replace_with_absent, shrink_branches, without_branches
from prunekit.graph.groups import INPUT, CouplingGraph, Group, GroupPlan, KeepMasks, Member
from prunekit.graph.l1_pruning import prune_groups
from prunekit.graph.layer_lists import drop_layers, dropped_layers
from prunekit.graph.members import (
    Combine,
    Coupled,
    Pool,
    Scored,
    of_units,
    over_entries,
    parameters_per_unit,
)
from prunekit.graph.plan import groups, traced
from prunekit.graph.proof import same_function
from prunekit.graph.reference_run import Deviation, VerificationError
from prunekit.graph.reorder import reorder_units
from prunekit.graph.resize import restore_sizes
from prunekit.graph.shrinking import GroupSize, ShrinkResult, shrink
from prunekit.graph.sizes import size_attributes
from prunekit.graph.staying import smaller
from prunekit.graph.surgery import alike, parameters_after, unit_masks

__all__ = [
    "BLOCKS",
    "INPUT",
    "Branch",
    "Branches",
    "Captured",
    "Chain",
    "Combine",
    "Coupled",
    "CouplingGraph",
    "DeadUnits",
    "Deviation",
    "GraphModel",
    "Group",
    "GroupPlan",
    "GroupSize",
    "KeepMasks",
    "Member",
    "Place",
    "Pool",
    "Scored",
    "ShrinkResult",
    "Stage",
    "UnitGroup",
    "VerificationError",
    "alike",
    "any_size",
    "captured",
    "captured_blocks",
    "chain_of",
    "dead_units",
    "drop_layers",
    "dropped_layers",
    "group_of",
    "groups",
    "of_units",
    "over_entries",
    "parameters_after",
    "parameters_per_unit",
    "prune_groups",
    "reorder_units",
    "replace_convolutions",
    "replace_with_absent",
    "restore_sizes",
    "same_function",
    "shrink",
    "shrink_branches",
    "shrink_columns",
    "shrink_dead",
    "size_attributes",
    "smaller",
    "traced",
    "unit_masks",
    "watched",
    "without_branches",
    "zero_dead",
]
