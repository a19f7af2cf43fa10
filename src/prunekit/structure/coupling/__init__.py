"""What is coupled in any network that PyTorch can export."""

from prunekit.structure.coupling.groups import Group, Member, Plan
from prunekit.structure.coupling.plan import groups, traced
from prunekit.structure.coupling.traced import Traced

__all__ = ["Group", "Member", "Plan", "Traced", "groups", "traced"]
