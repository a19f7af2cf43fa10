"""Time and memory of blocks, worked out by hand from given rates; shapes are enough."""

from __future__ import annotations

import pytest
import torch
import transformers

from prunekit.blockwise import block_costs, memory_needed, without_values
from prunekit.errors import InputError
from prunekit.methods import owl_wanda, sparsegpt, wanda
from prunekit.obs.rates import Rates

RATES = Rates(single=1e9, double=1e8, factorised=1e7, ranked=1e6, removal=(2e-6, 3e-9))
CONFIG = transformers.LlamaConfig(
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4},
    vocab_size=50,
)
MATRICES = [(32, 32)] * 4 + [(64, 32)] * 2 + [(32, 64)]
WEIGHTS = sum(rows * columns for rows, columns in MATRICES)


def test_by_hand_and_the_memory_is_that_of_the_files(tmp_path):
    with without_values():
        model = transformers.AutoModelForCausalLM.from_config(CONFIG)
    tokens, length = 5 * 12, 12
    found = block_costs(model, wanda(0.5), 5, length, width=32, item=4, rates=RATES)
    one_pass = (2 * (WEIGHTS + 2 * 32) * tokens + 4 * tokens * length * 32) / 1e9
    assert found.blocks == 3
    expected = {"statistics": one_pass, "solving": WEIGHTS / 1e6, "passing": one_pass}
    assert found.seconds == pytest.approx(expected)
    assert found.total == pytest.approx(3 * (2 * one_pass + WEIGHTS / 1e6))
    solved = block_costs(model, sparsegpt(0.5), 5, length, width=32, item=4, rates=RATES)
    products = tokens * sum(columns**2 for _, columns in MATRICES) / 1e9
    assert solved.seconds["statistics"] == pytest.approx(7 * one_pass + products)
    cubes = sum(columns**3 * 2 / 3 for _, columns in MATRICES)
    passes = 2 * sum(rows * columns**2 for rows, columns in MATRICES)
    assert solved.seconds["solving"] == pytest.approx(cubes / 1e7 + (cubes + passes) / 1e8)
    compared = block_costs(model, owl_wanda(0.5), 5, length, width=32, item=4, rates=RATES)
    assert compared.seconds == {"measuring": 2 * one_pass, **found.seconds, "solving": 0.0}

    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(CONFIG).save_pretrained(tmp_path)
    ids = torch.zeros(5, length, dtype=torch.long)
    assert solved.memory == memory_needed(tmp_path, sparsegpt(0.5), ids)
    lines = solved.table.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["statistics", "solving", "passing"]


def test_blocks_that_are_not_there_are_refused():
    with without_values():
        model = transformers.AutoModelForCausalLM.from_config(CONFIG)
    with pytest.raises(InputError, match=r"'model\.norm': not a list"):
        block_costs(model, wanda(0.5), 5, 12, width=32, blocks="model.norm", rates=RATES)
