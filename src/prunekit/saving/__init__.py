"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.description import Architecture
from prunekit.saving.folder import check_free, check_saved
from prunekit.saving.packed import PackedFile, is_packed, pack, unpack, write_packed
from prunekit.saving.pretrained import (
    SavedNetwork,
    load_masks,
    load_pretrained,
    save_pretrained,
)

__all__ = [
    "Architecture",
    "PackedFile",
    "SavedNetwork",
    "check_free",
    "check_saved",
    "is_packed",
    "load_masks",
    "load_pretrained",
    "pack",
    "save_pretrained",
    "unpack",
    "write_packed",
]
