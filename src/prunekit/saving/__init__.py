"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.folder import check_free, check_saved
from prunekit.saving.pretrained import (
    Architecture,
    holds_graph,
    load_architecture,
    load_masks,
    load_pretrained,
    prunes_groups,
    save_pretrained,
)

__all__ = [
    "Architecture",
    "check_free",
    "check_saved",
    "holds_graph",
    "load_architecture",
    "load_masks",
    "load_pretrained",
    "prunes_groups",
    "save_pretrained",
]
