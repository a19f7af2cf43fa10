"""Memory of pruning a Llama block by block and whole: `python benchmarks/blockwise.py --json FILE`.

Llamas with random weights and 4, 12 and 24 blocks, in a process each. The memory of a process is what it
takes at its peak beyond what it had when it had pruned a small one, with all code loaded: pages of files that
are mapped count as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prunekit import prune
from prunekit.blockwise import memory_needed, prune_blocks
from prunekit.methods import recipe
from side_by_side import alone, resident

BLOCKS, WIDTH = (4, 12, 24), 1024
SMALL = 64
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


def save(folder: str, blocks: int, width: int, dtype: str = "float32") -> None:
    """Write the dense network."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(blocks, width)).to(getattr(torch, dtype))
    model.save_pretrained(folder, max_shard_size="200MB")


def by_blocks(folder: str, method: str) -> None:
    """Prune block by block."""
    prune_blocks(folder, recipe(method, sparsity=0.5), tokens(), f"{folder}/out", inputs="dense")


def whole(folder: str, method: str) -> None:
    """Prune in one piece."""
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
    mine = recipe(method, sparsity=0.5).model_copy(
        update={"targets": ("model.layers.*",), "calibration": SEQUENCES}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune(model, mine, [{"input_ids": row[None], "labels": row[None]} for row in tokens()])


def measured(way: Any, folder: str, method: str, found: Any) -> None:
    """Run one way in this process, and send what it took."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as small:
        save(small, 1, SMALL)
        way(small, method)
    before, began = resident("VmRSS"), time.process_time()
    way(folder, method)
    found.put({"peak, MB": (resident("VmHWM") - before) / 1e6, "seconds": time.process_time() - began})


def main() -> None:
    """Measure all depths, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--no-whole", action="store_true", help="block by block alone")
    given = parser.parse_args()
    rows = []
    for method, blocks, dtype in itertools.product(given.methods, given.blocks, given.dtypes):
        with tempfile.TemporaryDirectory() as folder:
            save(folder, blocks, given.width, dtype)
            row: dict[str, Any] = {"method": method, "blocks": blocks, "width": given.width, "type": dtype}
            row["weights, MB"] = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6
            need = memory_needed(folder, recipe(method, sparsity=0.5), tokens())
            row["worked out before, MB"] = need.total / 1e6
            row["by blocks"] = alone(measured, by_blocks, folder, method)
            if not given.no_whole:
                row["whole"] = alone(measured, whole, folder, method)
            rows.append(row)
            print(json.dumps(row), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
