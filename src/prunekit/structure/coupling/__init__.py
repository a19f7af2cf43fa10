"""What is coupled in any network that PyTorch can export, and taking it out with the proof."""

from prunekit.structure.coupling.attributes import size_attributes
from prunekit.structure.coupling.cutting import alike, group_masks, smaller
from prunekit.structure.coupling.graph_model import Graph, GraphModel
from prunekit.structure.coupling.groups import Group, Member, Plan
from prunekit.structure.coupling.members import (
    Combine,
    Coupled,
    Pool,
    Scored,
    makers,
    of_units,
    over_entries,
)
from prunekit.structure.coupling.off import off_units, shrink_off
from prunekit.structure.coupling.places import Place, watched
from prunekit.structure.coupling.plan import groups, traced
from prunekit.structure.coupling.restoring import restore_sizes
from prunekit.structure.coupling.shrinking import Shrunk, prune_groups, shrink_groups
from prunekit.structure.coupling.sizes import parameters_per_unit
from prunekit.structure.coupling.traced import Keeping, Traced

__all__ = [
    "Combine",
    "Coupled",
    "Graph",
    "GraphModel",
    "Group",
    "Keeping",
    "Member",
    "Place",
    "Plan",
    "Pool",
    "Scored",
    "Shrunk",
    "Traced",
    "alike",
    "group_masks",
    "groups",
    "makers",
    "of_units",
    "off_units",
    "over_entries",
    "parameters_per_unit",
    "prune_groups",
    "restore_sizes",
    "shrink_groups",
    "shrink_off",
    "size_attributes",
    "smaller",
    "traced",
    "watched",
]
