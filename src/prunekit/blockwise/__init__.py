"""Networks that are larger than memory, pruned one block at a time from files to files."""

from prunekit.blockwise.block_network import without_values
from prunekit.blockwise.memory import MemoryNeed
from prunekit.blockwise.pruning import BlockKept, memory_needed, prune_blocks

__all__ = ["BlockKept", "MemoryNeed", "memory_needed", "prune_blocks", "without_values"]
