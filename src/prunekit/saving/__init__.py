"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.description import Architecture
from prunekit.saving.folder import check_free, check_saved
from prunekit.saving.pretrained import (
    SavedNetwork,
    load_masks,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "Architecture",
    "SavedNetwork",
    "check_free",
    "check_saved",
    "load_masks",
    "load_pretrained",
    "save_pretrained",
]
