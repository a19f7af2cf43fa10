"""Memory of pruning a Llama block by block and whole: `python benchmarks/blockwise.py --json FILE`.

Llamas with random weights and 4, 12 and 24 blocks, by Wanda, in a process each. The memory of a process is
what it takes at its peak beyond what it had with all code loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prunekit import prune
from prunekit.blockwise import memory_needed, prune_blocks
from prunekit.methods import wanda
from side_by_side import resident

BLOCKS, WIDTH = (4, 12, 24), 1024
SEQUENCES, LENGTH, WORDS = 8, 128, 1000


def config(blocks: int, width: int) -> LlamaConfig:
    """A Llama of this depth and width."""
    return LlamaConfig(
        **{"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": blocks},
        **{"num_attention_heads": width // 64, "vocab_size": WORDS},
    )


def tokens() -> torch.Tensor:
    """The calibration text."""
    return torch.randint(0, WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))


def save(folder: str, blocks: int, width: int) -> None:
    """Write the dense network."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config(blocks, width)).save_pretrained(folder, max_shard_size="200MB")


def by_blocks(folder: str) -> None:
    """Prune block by block."""
    prune_blocks(folder, wanda(0.5), tokens(), f"{folder}/out", inputs="dense")


def whole(folder: str) -> None:
    """Prune in one piece."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    mine = wanda(0.5).model_copy(update={"targets": ("model.layers.*",), "calibration": SEQUENCES})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune(model, mine, [{"input_ids": row[None], "labels": row[None]} for row in tokens()])


def measured(way: Any, folder: str, found: Any) -> None:
    """Run one way in this process, and send what it took."""
    torch.set_num_threads(1)
    before, began = resident("VmRSS"), time.process_time()
    way(folder)
    found.put({"peak, MB": (resident("VmHWM") - before) / 1e6, "seconds": time.process_time() - began})


def alone(target: Any, *arguments: Any) -> Any:
    """What a function puts into a queue, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=target, args=(*arguments, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def main() -> None:
    """Measure all depths, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    given = parser.parse_args()
    rows = []
    for blocks in given.blocks:
        with tempfile.TemporaryDirectory() as folder:
            save(folder, blocks, given.width)
            row: dict[str, Any] = {"blocks": blocks, "width": given.width}
            row["weights, MB"] = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6
            row["worked out before, MB"] = memory_needed(folder, wanda(0.5), tokens()).total / 1e6
            row["by blocks"] = alone(measured, by_blocks, folder)
            row["whole"] = alone(measured, whole, folder)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
