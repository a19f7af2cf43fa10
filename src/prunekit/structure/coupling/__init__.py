"""What is coupled in any network that PyTorch can export."""

from prunekit.structure.coupling.groups import Group, Member, Plan

__all__ = ["Group", "Member", "Plan"]
