"""Heads and widths taken out block by block: against the whole network, and against slices of tensors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prune_blocks import CONFIGS, VOCABULARY, check_same_files, loaded, saved, stop_at, tokens
from torch import nn

from prunekit import prune
from prunekit.blockwise import memory_needed, prune_blocks, without_values
from prunekit.blockwise.shards import Shards, write_shard
from prunekit.errors import InputError, ModelError
from prunekit.graph import shrink
from prunekit.methods import recipe
from prunekit.parts.granularity import Unit
from prunekit.recipe import Recipe

transformers = pytest.importorskip("transformers")

WIDTHS = Unit(kinds=("heads", "MLP width"))


def chosen(method: str, granularity: Unit = WIDTHS, **settings: Any) -> Recipe:
    return recipe(method, sparsity=0.5, **settings).model_copy(update={"granularity": granularity})


def with_biases() -> Any:
    config = CONFIGS["llama"]()
    config.attention_bias = config.mlp_bias = True
    return config


def made_smaller(model: nn.Module, mine: Recipe) -> nn.Module:
    """The same recipe on the whole network in memory, which is then shrunk."""
    ids = tokens()
    mine = mine.model_copy(update={"targets": ("model.layers.*",), "calibration": len(ids)})
    batches = [{"input_ids": row[None], "labels": row[None]} for row in ids]
    pruned = prune(model, mine, batches)
    shrink(model, {"input_ids": ids[:1], "use_cache": False}, dict(pruned.kept), training=False)
    return model


@pytest.mark.parametrize(
    ("config", "mine"),
    [
        ("llama", chosen("minitron")),
        ("qwen2, tied", chosen("minitron", Unit(kinds=("MLP width",), round_to=24))),
        ("biases", chosen("flap", even=True, compensate=True)),
    ],
    ids=["minitron", "multiples of 24", "flap, compensated"],
)
def test_what_from_pretrained_loads_is_the_whole_network_made_smaller(
    tmp_path: Path, monkeypatch: Any, config: str, mine: Recipe
) -> None:
    monkeypatch.setitem(CONFIGS, "biases", with_biases)
    model = saved(tmp_path / "in", config)
    if config == "biases":  # zeros would show nothing
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name.endswith("bias"):
                    value.normal_(std=0.1)
        model.save_pretrained(tmp_path / "in", max_shard_size="40KB")
    kept = prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "out", inputs="dense")
    expected, found = made_smaller(copy.deepcopy(model), mine), loaded(tmp_path / "out")
    for key, value in expected.state_dict().items():
        assert torch.allclose(value, found.state_dict()[key], atol=1e-6), key
    assert found.config.intermediate_size == kept[0].kept["mlp.gate_proj"] < 64
    assert found.config.num_attention_heads == expected.config.num_attention_heads
    assert found.num_parameters() < model.num_parameters()
    with torch.no_grad():
        assert torch.allclose(found(tokens()).logits, expected(tokens()).logits, atol=1e-5)


def test_the_weights_that_stay_are_slices_of_the_dense_ones(tmp_path: Path) -> None:
    """By hand: half of the MLP, one of two key-value heads, by norms of what the last matrices are given."""
    model = saved(tmp_path / "in")
    prune_blocks(tmp_path / "in", chosen("minitron"), tokens(), tmp_path / "out", inputs="dense")
    given: dict[str, torch.Tensor] = {}
    for name, layer in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            layer.register_forward_pre_hook(lambda _, x, name=name: given.update({name: x[0]}))
    with torch.no_grad():
        model(tokens(), use_cache=False)
    found = loaded(tmp_path / "out")
    for number, (dense, small) in enumerate(zip(model.model.layers, found.model.layers, strict=True)):
        norms = {
            short: given[f"model.layers.{number}.{short}"].abs().mean(1).square().sum(0)
            for short in ("self_attn.o_proj", "mlp.down_proj")
        }
        width = norms["mlp.down_proj"].argsort()[32:].sort().values
        head = int(norms["self_attn.o_proj"].view(2, 16).sum(1).argmax())
        queries, keys = slice(16 * head, 16 * head + 16), slice(8 * head, 8 * head + 8)
        for short, slices in {
            "mlp.gate_proj": (width, slice(None)),
            "mlp.up_proj": (width, slice(None)),
            "mlp.down_proj": (slice(None), width),
            "self_attn.q_proj": (queries, slice(None)),
            "self_attn.k_proj": (keys, slice(None)),
            "self_attn.v_proj": (keys, slice(None)),
            "self_attn.o_proj": (slice(None), queries),
        }.items():
            assert torch.equal(small.get_submodule(short).weight, dense.get_submodule(short).weight[slices])
    written, before = (json.loads((tmp_path / at / "config.json").read_text()) for at in ("out", "in"))
    changed = {key: written[key] for key in written if written[key] != before.get(key)}
    assert changed == {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * found.num_parameters()


def test_an_interrupted_run_goes_on_to_the_same_smaller_network(tmp_path: Path, monkeypatch: Any) -> None:
    saved(tmp_path / "in")
    mine = chosen("flap", Unit(kinds=("MLP width",)), even=True)
    kept = prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "once")
    stop_at(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "twice")
    monkeypatch.undo()
    assert prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "twice", activations="disk") == kept
    check_same_files(tmp_path / "once", tmp_path / "twice")
    assert [each.kept for each in kept] == [{"mlp.gate_proj": 32}] * 3


class Own(nn.Module):
    """A network without a configuration, whose blocks have a width of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)) for _ in range(2)
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_network_without_a_configuration_comes_out_as_its_values(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own()
    write_shard(tmp_path / "in" / "model.safetensors", model.state_dict())
    with without_values():
        empty = Own()
    kept = prune_blocks(
        tmp_path / "in", recipe("minitron", sparsity=0.25), tokens(), tmp_path / "out", model=empty
    )
    assert [each.kept for each in kept] == [{"0": 9}] * 2
    shards = Shards.of(tmp_path / "out")
    shapes = {name: shape for name, (shape, _) in shards.sizes(shards.file_of).items()}
    assert shapes["layers.1.0.weight"] == (9, 8)
    assert shapes["layers.1.2.weight"] == (8, 9)
    assert shapes["embed.weight"] == (VOCABULARY, 8)


def test_what_one_configuration_cannot_say_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("prunekit.graph.fitted_settings._MOST_BUILT", 5)
    saved(tmp_path / "gpt2", "gpt2")
    saved(tmp_path / "llama")
    heads = Unit(kinds=("heads",))
    for folder, mine, error, match in [
        ("gpt2", chosen("minitron", heads), ModelError, r"from_pretrained could not load .*c_attn\.weight"),
        ("llama", chosen("flap"), InputError, "'global' compares layers, and blocks of one .* 'per_layer'"),
        (
            "llama",
            chosen("flap", even=True, compensate=True),
            ModelError,
            r"into the bias of .*o_proj.* none",
        ),
        ("llama", chosen("minitron", Unit(residual=True)), InputError, "it removes parts of the stream"),
        ("llama", recipe("shortgpt"), InputError, "it removes whole blocks"),
        (
            "llama",
            chosen("minitron").model_copy(update={"score": recipe("taylor_units").score}),
            InputError,
            "needs more of the loss of the whole network than gradients",
        ),
    ]:
        with pytest.raises(error, match=match):
            prune_blocks(tmp_path / folder, mine, tokens(), tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_blocks_of_several_widths_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Own()
    model.layers[1][0], model.layers[1][2] = nn.Linear(8, 16), nn.Linear(16, 8)
    write_shard(tmp_path / "in" / "model.safetensors", model.state_dict())
    with without_values():
        empty = copy.deepcopy(model).to("meta")
    with pytest.raises(ModelError, match=r"layers\.1: 0\.weight has the shape \[8, 8\], but \[6, 8\] in the"):
        prune_blocks(
            tmp_path / "in", recipe("minitron", sparsity=0.5), tokens(), tmp_path / "out", model=empty
        )


def test_the_proof_counts_in_the_memory(tmp_path: Path) -> None:
    saved(tmp_path / "in")
    values = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32
    need = memory_needed(tmp_path / "in", chosen("minitron"), tokens())
    sequence = 12 * (8 * 64 + 16 * 32 + 2 * 12)
    assert (need.proving, need.copy) == (8 * (3 * values + sequence), 0)
    least_squares = chosen("minitron").model_copy(update={"repair": recipe("thinet").repair})
    fitted = memory_needed(tmp_path / "in", least_squares, tokens())
    assert fitted.copy == 4 * values
    assert fitted.solving > 8 * 64**2
