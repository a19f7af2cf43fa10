"""Saving pruned networks: safetensors and JSON, or one small file; never a pickle."""

from prunekit.saving.contents import contents_of
from prunekit.saving.description import Architecture
from prunekit.saving.folder import check_free, check_saved, write_folder
from prunekit.saving.packed import pack, unpack, write_packed
from prunekit.saving.packed_file import PackedFile, is_packed
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
    "contents_of",
    "is_packed",
    "load_masks",
    "load_pretrained",
    "pack",
    "save_pretrained",
    "unpack",
    "write_folder",
    "write_packed",
]
