"""Networks of one's own, whose blocks are a chain or not: pruned by Wanda as by hand, or refused."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from test_prune_blocks import CONFIGS, VOCABULARY, tokens
from test_prune_blocks import saved as saved_llama
from torch import Tensor, nn

from prunekit.blockwise import memory_needed, prune_blocks, without_values
from prunekit.blockwise.shards import Shards, write_shard
from prunekit.errors import InputError, ModelError
from prunekit.methods import recipe

transformers = pytest.importorskip("transformers")

Given = namedtuple("Given", ["stream", "extra"])


class Block(nn.Module):
    """A layer, in a form that block and network agree about."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor, first: Tensor | None = None) -> Any:
        x = torch.tanh(self.layer(x)) + (0 if first is None else first)
        return Given(x, x.mean()) if self.kind in ("named tuple", "value of another") else x


class Chain(nn.Module):
    """Three blocks, which the network calls in some way."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.config = kind, {"a configuration": "of its own"}
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.register_buffer("scale", torch.ones(8))
        self.layers = nn.ModuleList(Block(kind) for _ in range(3))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, VOCABULARY)

    def forward(self, ids: Tensor) -> Tensor:
        first = x = self.embed(ids) * self.scale
        extra = None
        for _ in range(2 if self.kind == "loop" else 1):
            for layer in self.layers:
                if self.kind == "first":
                    x = layer(x, first)
                elif self.kind == "between":
                    x = layer(x) + first
                elif self.kind == "side by side":
                    x = first + layer(first)
                elif self.kind == "twice":
                    x = layer(layer(x))
                elif self.kind == "named tuple":
                    x = layer(x).stream
                elif self.kind == "value of another":
                    x, extra = layer(x, extra)
                else:
                    x = layer(x)
            x = self.norm(x)
        if self.kind == "tied head":
            return x @ self.embed.weight.T
        return self.head(x)


def saved(folder: Path, kind: str) -> tuple[Chain, Chain]:
    """A network with values, which are in the folder, and the same without."""
    torch.manual_seed(0)
    model = Chain(kind).eval()
    model.scale.copy_(torch.linspace(0.1, 3, 8))
    write_shard(folder / "model.safetensors", model.state_dict())
    with without_values():
        return model, Chain(kind)


@pytest.mark.parametrize("kind", ["plain", "named tuple", "tied head"])
def test_a_chain_is_pruned_as_by_hand(tmp_path: Path, kind: str) -> None:
    """Also where a buffer outside of the blocks has another value than the one that it is made with, where
    `config` is none of transformers, and where the head is called without a module of its own."""
    model, empty = saved(tmp_path / "in", kind)
    given: dict[str, list[Tensor]] = {}
    for name, block in model.layers.named_children():
        block.layer.register_forward_pre_hook(lambda _, args, n=name: given.setdefault(n, []).append(args[0]))
    with torch.no_grad():
        for row in tokens():
            model(row[None])
    prune_blocks(
        tmp_path / "in",
        recipe("wanda", sparsity=0.5),
        tokens(),
        tmp_path / "out",
        model=empty,
        blocks="layers",
        inputs="dense",
    )
    found = Shards.of(tmp_path / "out")
    for name, inputs in given.items():
        key = f"layers.{name}.layer.weight"
        weight = model.get_parameter(key).detach()
        scores = weight.abs() * torch.cat(inputs, 1)[0].norm(dim=0)
        expected = weight.scatter(1, scores.argsort(1)[:, :4], 0)
        assert torch.equal(found.read([key])[key], expected)


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("first", r"Chain gives layers\.0 more of the text than the activations"),
        ("value of another", r"Chain gives layers\.1 more of the text than the activations"),
        ("between", r"Chain gives layers\.1 something else than what layers\.0 gives"),
        ("side by side", r"Chain gives layers\.1 something else than what layers\.0 gives"),
        ("twice", r"Chain calls layers\.0 where each of its blocks should be called once.*\(1 have been\)"),
        ("loop", r"Chain calls layers\.0 where each of its blocks should be called once.*\(3 have been\)"),
    ],
)
def test_blocks_that_are_no_chain_are_refused(tmp_path: Path, kind: str, match: str) -> None:
    _, empty = saved(tmp_path / "in", kind)
    with pytest.raises(ModelError, match=match):
        prune_blocks(
            tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out", model=empty, blocks="layers"
        )
    assert not (tmp_path / "out").exists()


def test_a_network_that_has_values_is_refused_and_keeps_them(tmp_path: Path) -> None:
    model, _ = saved(tmp_path / "in", "plain")
    with pytest.raises(
        InputError, match=r"model: embed\.weight has values, which are to come from the files"
    ):
        prune_blocks(
            tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out", model=model, blocks="layers"
        )
    assert not any(value.is_meta for value in model.parameters())


def test_a_value_of_a_block_that_is_used_outside_is_refused(tmp_path: Path) -> None:
    _, empty = saved(tmp_path / "in", "plain")
    empty.side = nn.Linear(8, 8, bias=False)
    empty.side.weight = empty.layers[1].layer.weight
    with pytest.raises(InputError, match=r"layers\.1\.layer\.weight is shared with side\.weight"):
        prune_blocks(
            tmp_path / "in", recipe("wanda"), tokens(), tmp_path / "out", model=empty, blocks="layers"
        )


def test_a_network_with_a_tied_head_that_was_opened_once_is_opened_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Chain("plain")
    values = model.state_dict()
    del values["head.weight"]
    write_shard(tmp_path / "in" / "model.safetensors", values)
    with without_values():
        empty = Chain("plain")
    empty.head.weight = empty.embed.weight
    given: Any = {"model": empty, "blocks": "layers"}
    first = memory_needed(tmp_path / "in", recipe("wanda"), tokens(), **given)
    assert empty.head.weight is empty.embed.weight
    assert memory_needed(tmp_path / "in", recipe("wanda"), tokens(), **given) == first


@pytest.mark.parametrize("method", ["wanda", "minitron", "llm_pruner"])
def test_attention_that_lays_out_the_weights_of_its_heads_is_counted(tmp_path: Path, method: str) -> None:
    """Two of (4 heads, 12, 12) where text passes, as scores and their softmax; six with gradients."""
    saved_llama(tmp_path / "in")

    def need(attention: str) -> Any:
        with without_values():
            empty = transformers.AutoModelForCausalLM.from_config(
                CONFIGS["llama"](), attn_implementation=attention
            )
        return memory_needed(tmp_path / "in", recipe(method, sparsity=0.5), tokens(), model=empty)

    flat, laid_out = need("sdpa"), need("eager")
    one = 4 * 4 * 12 * 12
    assert laid_out.passing - flat.passing == laid_out.measuring - flat.measuring == 2 * one
    assert laid_out.proving - flat.proving == (0 if method == "wanda" else 6 * one)
    assert (laid_out.differentiating > flat.differentiating) == (method == "llm_pruner")
