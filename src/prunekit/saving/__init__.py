"""Saving pruned networks: safetensors and JSON, never a pickle."""

from prunekit.saving.pretrained import Architecture, load_masks, load_pretrained, save_pretrained

__all__ = ["Architecture", "load_masks", "load_pretrained", "save_pretrained"]
