"""Networks that are larger than memory, pruned one block at a time from files to files."""

from prunekit.blockwise.block_network import without_values
from prunekit.blockwise.cost_model import BlockCosts, block_costs
from prunekit.blockwise.lm_text import drawn_sequences, text_tokens
from prunekit.blockwise.memory import MemoryNeed
from prunekit.blockwise.pruning import BlockwisePruning, memory_needed, prune_blocks
from prunekit.blockwise.run_progress import BlockKept

__all__ = [
    "BlockCosts",
    "BlockKept",
    "BlockwisePruning",
    "MemoryNeed",
    "block_costs",
    "drawn_sequences",
    "memory_needed",
    "prune_blocks",
    "text_tokens",
    "without_values",
]
