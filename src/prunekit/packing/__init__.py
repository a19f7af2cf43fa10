"""A network as one small file, to the bit: written, read from anybody, and told layer by layer."""

from prunekit.packing.costs import PackedCosts, costs_of
from prunekit.packing.file import PackedFile, is_packed, pack, unpack, write_packed

__all__ = ["PackedCosts", "PackedFile", "costs_of", "is_packed", "pack", "unpack", "write_packed"]
