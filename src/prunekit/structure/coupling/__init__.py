"""What is coupled in any network that PyTorch can export, and taking it out with the proof."""

from prunekit.structure.coupling.graph_model import GraphModel
from prunekit.structure.coupling.groups import Group, Member, Plan
from prunekit.structure.coupling.plan import groups, traced
from prunekit.structure.coupling.shrinking import Shrunk, prune_groups, shrink_groups
from prunekit.structure.coupling.sizes import parameters_per_unit
from prunekit.structure.coupling.traced import Keeping, Traced

__all__ = [
    "GraphModel",
    "Group",
    "Keeping",
    "Member",
    "Plan",
    "Shrunk",
    "Traced",
    "groups",
    "parameters_per_unit",
    "prune_groups",
    "shrink_groups",
    "traced",
]
