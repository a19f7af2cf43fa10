"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.folder import check_free
from prunekit.saving.pretrained import (
    Architecture,
    load_architecture,
    load_masks,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "Architecture",
    "check_free",
    "load_architecture",
    "load_masks",
    "load_pretrained",
    "save_pretrained",
]
