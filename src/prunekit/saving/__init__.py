"""Saving pruned networks as folders of safetensors and JSON; never a pickle."""

from prunekit.saving.contents import contents_of
from prunekit.saving.description import Architecture
from prunekit.saving.folder import check_free, check_saved, write_folder
from prunekit.saving.pretrained import (
    SavedNetwork,
    load_masks,
    load_pretrained,
    save_pretrained,
)
from prunekit.saving.session_files import (
    load_session,
    save_session,
    session_from_tensors,
    session_to_tensors,
)

__all__ = [
    "Architecture",
    "SavedNetwork",
    "check_free",
    "check_saved",
    "contents_of",
    "load_masks",
    "load_pretrained",
    "load_session",
    "save_pretrained",
    "save_session",
    "session_from_tensors",
    "session_to_tensors",
    "write_folder",
]
