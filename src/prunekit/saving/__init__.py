"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.pretrained import (
    Architecture,
    check_free,
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
