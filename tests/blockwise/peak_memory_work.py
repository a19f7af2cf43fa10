"""What the system counts while networks are pruned block by block, in a process of its own.

`python peak_memory_work.py JSON` prunes for each of a list of cases (method, type, width, blocks) and prints
a list of [bytes worked out, bytes at the peak].
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import torch
import transformers

from prunekit.blockwise import memory_needed, prune_blocks
from prunekit.blockwise.allocator import give_back_memory
from prunekit.methods import recipe
from prunekit.parts.allocation import PerLayer
from prunekit.recipe import Recipe

SEQUENCES, LENGTH, WORDS = 8, 64, 100
RUNS = 3
"""Of at most as many the least counts: code that is loaded late, and memory taken back late, only add."""


def resident(which: str) -> int:
    """Bytes of this process: `VmRSS` now, `VmHWM` at the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(which))


def chosen(method: str) -> Recipe:
    """Half of the weights or units goes; of `NAME, a twentieth` less, so that what is left is larger."""
    name, _, less = method.partition(", ")
    return recipe(name, sparsity=0.05 if less else 0.5).model_copy(update={"allocation": PerLayer()})


def save(folder: str, dtype: str, width: int, blocks: int) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": blocks},
        **{"num_attention_heads": width // 64, "vocab_size": WORDS},
    )
    model = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    model.save_pretrained(folder)


def measured(method: str, dtype: str, width: int, blocks: int) -> tuple[int, int]:
    tokens = torch.randint(0, WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        save(folder, dtype, width, blocks)
        need = memory_needed(folder, chosen(method), tokens).total
        give_back_memory()  # of the networks that were saved and opened
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        prune_blocks(folder, chosen(method), tokens, f"{folder}/out")
        return need, resident("VmHWM") - before


def main() -> None:
    cases = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    found = []
    for method, dtype, width, blocks in cases:
        measured(method, dtype, 64, 1)  # code is loaded when it is first used
        need, peak = measured(method, dtype, width, blocks)
        for _ in range(RUNS - 1):
            if peak > need:
                peak = min(peak, measured(method, dtype, width, blocks)[1])
        found.append((need, peak))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
