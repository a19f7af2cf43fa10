"""What is coupled in any network that PyTorch can export, and taking it out with the proof."""

from prunekit.graph.activation_taps import Place, watched
from prunekit.graph.attributes import size_attributes
from prunekit.graph.graph_model import Graph, GraphModel
from prunekit.graph.groups import Group, Member, Plan
from prunekit.graph.members import (
    Combine,
    Coupled,
    Pool,
    Scored,
    makers,
    of_units,
    over_entries,
)
from prunekit.graph.off import off_units, shrink_off
from prunekit.graph.plan import groups, traced
from prunekit.graph.resize import restore_sizes
from prunekit.graph.shrinking import GroupSize, ShrinkResult, prune_groups, shrink
from prunekit.graph.surgery import alike, parameters_after, smaller, unit_masks
from prunekit.graph.traced import CouplingGraph, KeepMasks
from prunekit.graph.weight_stats import parameters_per_unit

__all__ = [
    "Combine",
    "Coupled",
    "CouplingGraph",
    "Graph",
    "GraphModel",
    "Group",
    "GroupSize",
    "KeepMasks",
    "Member",
    "Place",
    "Plan",
    "Pool",
    "Scored",
    "ShrinkResult",
    "alike",
    "groups",
    "makers",
    "of_units",
    "off_units",
    "over_entries",
    "parameters_after",
    "parameters_per_unit",
    "prune_groups",
    "restore_sizes",
    "shrink",
    "shrink_off",
    "size_attributes",
    "smaller",
    "traced",
    "unit_masks",
    "watched",
]
