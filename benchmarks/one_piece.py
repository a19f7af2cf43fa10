"""Memory and time of pruning a Llama in one piece: `python benchmarks/one_piece.py --json FILE`.

Llamas of width 2048 with random weights and 4 and 8 blocks (307 and 483 million parameters, single precision)
are pruned by `prunekit.prune` in a process each, on 8 sequences of 128 tokens. The peak of a process is what
it takes, the network included, beyond what it had with all code loaded. Exact layer-wise OBS is not run, but
its time told as `solving_time` tells it. The blocks alone are pruned, or, with `--head`, all that a recipe
takes by default, the language model's head as well.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from prunekit import prune
from prunekit.methods import recipe
from prunekit.pruning import solving_time
from side_by_side import alone, machine, resident

BLOCKS, WIDTH = (4, 8), 2048
SEQUENCES, LENGTH, WORDS = 8, 128, 32000
METHODS = ("wanda", "sparsegpt", "exact_layer_obs")
TOLD = ("exact_layer_obs",)


def llama(blocks: int, width: int) -> torch.nn.Module:
    """A Llama in the proportions of TinyLlama, with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **{"hidden_size": width, "intermediate_size": 11 * width // 4, "num_hidden_layers": blocks},
        **{"num_attention_heads": width // 64, "num_key_value_heads": width // 512, "vocab_size": WORDS},
    )
    return AutoModelForCausalLM.from_config(config)


def examples() -> list[dict[str, torch.Tensor]]:
    """The calibration text, a sequence at a time."""
    tokens = torch.randint(0, WORDS, (SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row[None], "labels": row[None]} for row in tokens]


def measured(method: str, blocks: int, width: int, threads: int, head: bool, found: Any) -> None:
    """Prune in this process, and send what it took."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    before = resident("VmRSS")
    model = llama(blocks, width)
    weights = sum(each.numel() * each.element_size() for each in model.parameters())
    chosen = recipe(method, sparsity=0.5).model_copy(
        update={"targets": None if head else ("model.layers.*",), "calibration": SEQUENCES}
    )
    row = {"method": method, "blocks": blocks, "width": width, "threads": threads, "head": head}
    if method in TOLD:
        seconds = solving_time(model, chosen)
        found.put({**row, "hours as told": sum(seconds.values()) / 3600})
        return
    made = resident("VmHWM") - before
    began, on_wall = time.process_time(), time.perf_counter()
    pruned = prune(model, chosen, examples())
    seconds, wall = time.process_time() - began, time.perf_counter() - on_wall
    found.put(
        {
            **row,
            "million parameters": sum(each.numel() for each in model.parameters()) / 1e6,
            "weights, MB": weights / 1e6,
            "peak of making it / weights": made / weights,
            "peak / weights": (resident("VmHWM") - before) / weights,
            "seconds": seconds,
            "seconds by the clock": wall,
            "sparsity": pruned.masks.sparsity,
        }
    )


def main() -> None:
    """Measure all methods at all depths, and print or write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--head", action="store_true", help="prune the head as well")
    given = parser.parse_args()
    rows = []
    for method in given.methods:
        for blocks in given.blocks:
            rows.append(alone(measured, method, blocks, given.width, given.threads, given.head))
            print(json.dumps(rows[-1]), flush=True)
            if given.json:
                given.json.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
