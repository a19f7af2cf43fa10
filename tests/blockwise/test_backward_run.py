"""Networks pruned block by block by gradients: against gradients of the whole network, taken by autograd."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_prune_blocks import VOCABULARY, check_same_files, loaded, saved, tokens, whole
from test_smaller_blocks import chosen, made_smaller
from torch import nn

from prunekit.blockwise import memory_needed, prune_blocks, without_values
from prunekit.blockwise.block_network import BlockNetwork, causal_model
from prunekit.blockwise.shards import Shards, write_shard
from prunekit.blockwise.text_activations import StreamFile
from prunekit.errors import DataError, InputError, ModelError
from prunekit.methods import recipe
from prunekit.parts.allocation import PerLayer
from prunekit.parts.granularity import Unit
from prunekit.parts.schedule import Linear
from prunekit.recipe import Recipe

transformers = pytest.importorskip("transformers")


def snip(**changes: Any) -> Recipe:
    """|w dL/dw|, the same share of every layer."""
    return recipe("snip", sparsity=0.5).model_copy(update={"allocation": PerLayer(), **changes})


def differentiated(model: nn.Module) -> nn.Module:
    """With the gradient of the mean loss of the next tokens in `.grad`."""
    model.zero_grad()
    logits = model(tokens(), use_cache=False).logits
    F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), tokens()[:, 1:].reshape(-1)).backward()
    return model


def test_heads_and_neurons_are_those_of_the_least_weight_times_gradient(tmp_path: Path) -> None:
    """By hand: of each unit the sum over its rows and columns; half of the MLP goes, and a head of two."""
    model = differentiated(saved(tmp_path / "in"))
    kept = prune_blocks(tmp_path / "in", recipe("llm_pruner", sparsity=0.5), tokens(), tmp_path / "out")
    found = loaded(tmp_path / "out")
    assert (found.config.intermediate_size, found.config.num_key_value_heads) == (32, 1)
    assert [sum(each.kept.values()) for each in kept] == [33] * 3
    for dense, small in zip(model.model.layers, found.model.layers, strict=True):
        matrices = {
            name.split(".")[-2]: (w * w.grad).abs() for name, w in dense.named_parameters() if w.dim() == 2
        }
        neurons = matrices["gate_proj"].sum(1) + matrices["up_proj"].sum(1) + matrices["down_proj"].sum(0)
        width = neurons.argsort()[32:].sort().values
        assert torch.equal(small.mlp.down_proj.weight, dense.mlp.down_proj.weight[:, width])
        queries = matrices["q_proj"].sum(1) + matrices["o_proj"].sum(0)
        keys = matrices["k_proj"].sum(1) + matrices["v_proj"].sum(1)
        head = int((queries.view(2, -1).sum(1) + keys.view(2, -1).sum(1)).argmax())
        rows = slice(8 * head, 8 * head + 8)
        assert torch.equal(small.self_attn.k_proj.weight, dense.self_attn.k_proj.weight[rows])


@pytest.mark.parametrize(
    ("config", "mine"),
    [
        ("llama", recipe("llm_pruner", sparsity=0.5)),
        ("qwen2, tied", chosen("llm_pruner", Unit(kinds=("MLP width",), over="all", round_to=24))),
    ],
    ids=["llama", "multiples of 24"],
)
def test_what_from_pretrained_loads_is_the_whole_network_made_smaller(
    tmp_path: Path, config: str, mine: Recipe
) -> None:
    model = saved(tmp_path / "in", config)
    prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "out")
    expected, found = made_smaller(copy.deepcopy(model), mine), loaded(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(found(tokens()).logits, expected(tokens()).logits, atol=1e-5)
    assert found.num_parameters() == expected.num_parameters() < model.num_parameters()


@pytest.mark.parametrize("config", ["llama", "gpt2", "bloom", "qwen2, tied", "gemma3, windows"])
def test_weights_are_those_of_the_whole_network(tmp_path: Path, config: str) -> None:
    model = saved(tmp_path / "in", config)
    kept = prune_blocks(tmp_path / "in", snip(), tokens(), tmp_path / "out")
    expected, found = whole(model, snip()).state_dict(), loaded(tmp_path / "out").state_dict()
    for key, value in expected.items():
        assert torch.equal(value, found[key]), key
    assert [each.sparsity for each in kept] == pytest.approx([0.5] * 3)


def test_the_gradient_behind_the_blocks_is_that_of_the_loss(tmp_path: Path) -> None:
    model = saved(tmp_path / "in").requires_grad_(False)
    streams: list[torch.Tensor] = []

    def last(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        streams.append(output.detach().requires_grad_())
        return streams[-1]

    model.model.layers[-1].register_forward_hook(last)
    row = tokens()[0]
    model(row[None], labels=row[None], use_cache=False).loss.backward()
    network = BlockNetwork(causal_model(tmp_path / "in"), Shards.of(tmp_path / "in"))
    network.calls(row[None])
    assert torch.allclose(network.loss_gradient(streams[0], row), streams[0].grad, rtol=1e-5, atol=1e-9)
    assert all(value.is_meta for value in network.model.parameters())


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_files(tmp_path: Path) -> None:
    """Behind each block on the way there and on the way back; activations are elsewhere each time."""
    saved(tmp_path / "in")
    given = (tmp_path / "in", chosen("llm_pruner", Unit(kinds=("MLP width",))), tokens())
    told: list[tuple[int, int]] = []
    once = prune_blocks(*given, tmp_path / "once", report=lambda *each: told.append(each))
    assert told == [(done, 6) for done in range(7)]

    def stopping(done: int, count: int) -> None:
        told.append((done, count))
        if done == stop:
            raise KeyboardInterrupt

    told.clear()
    for stop in range(1, 6):
        medium: Any = ("memory", "disk")[stop % 2]
        with pytest.raises(KeyboardInterrupt):
            prune_blocks(*given, tmp_path / "twice", activations=medium, report=stopping)
    assert [done for done, _ in told] == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    (tmp_path / "twice" / "..gradient-1.npy.half").touch()  # what a kill leaves of a file that is written
    assert prune_blocks(*given, tmp_path / "twice") == once
    check_same_files(tmp_path / "once", tmp_path / "twice")
    assert not [path.name for path in (tmp_path / "twice").iterdir() if path.name.startswith(".")]
    assert prune_blocks(*given, tmp_path / "twice") == once  # nothing is left to do


def test_gradients_that_were_changed_in_between_are_refused(tmp_path: Path) -> None:
    saved(tmp_path / "in")
    given = (tmp_path / "in", snip(), tokens(), tmp_path / "out")

    def stopping(done: int, count: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune_blocks(*given, report=stopping)
    names = {path.name for path in (tmp_path / "out").glob(".*")}
    assert names == {".stream-0.npy", ".stream-1.npy", ".gradient-2.npy", ".lock"}
    for name in [".gradient-2.npy", ".stream-1.npy"]:
        path = tmp_path / "out" / name
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DataError, match=rf"\{name} is missing or damaged"):
            prune_blocks(*given)
        path.write_bytes(content)
    prune_blocks(*given)


def test_activations_on_disk_are_in_memory_a_sequence_at_a_time(tmp_path: Path, monkeypatch: Any) -> None:
    saved(tmp_path / "in")
    really, asked = StreamFile.__getitem__, []
    monkeypatch.setattr(StreamFile, "__getitem__", lambda self, at: asked.append(at) or really(self, at))
    prune_blocks(tmp_path / "in", snip(), tokens(), tmp_path / "out", activations="disk")
    assert {each for each in asked if isinstance(each, slice)} == set()
    less, more = (
        memory_needed(tmp_path / "in", snip(), tokens(), activations=medium) for medium in ("disk", "memory")
    )
    assert (less.stream, more.stream) == (3 * 4 * 12 * 32, 3 * 4 * 5 * 12 * 32)


def test_what_gradients_cannot_do_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("prunekit.graph.fitted_settings._MOST_BUILT", 5)
    saved(tmp_path / "in")
    for mine, inputs, match in [
        (snip(), "pruned", "inputs = 'pruned': gradients come back through dense blocks"),
        (snip(schedule=Linear(sparsity=0.5, steps=3)), None, "the schedule has several steps"),
        (snip(allocation=recipe("owl_wanda").allocation), None, "'owl' compares layers, which are measured"),
        (
            snip(repair=recipe("sparsegpt").repair, order="forward"),
            None,
            "the order 'forward' measures layers behind those that are pruned",
        ),
        (recipe("grasp").model_copy(update={"allocation": PerLayer()}), None, "more of the loss"),
        (
            recipe("block_fisher").model_copy(update={"allocation": PerLayer()}),
            None,
            "more of the loss of the whole network than gradients",
        ),
    ]:
        with pytest.raises(InputError, match=match):
            prune_blocks(tmp_path / "in", mine, tokens(), tmp_path / "out", inputs=inputs)
    saved(tmp_path / "gpt2", "gpt2")
    heads = chosen("llm_pruner", Unit(kinds=("heads",)))
    with pytest.raises(ModelError, match=r"from_pretrained could not load .*c_attn\.weight"):
        prune_blocks(tmp_path / "gpt2", heads, tokens(), tmp_path / "out")
    with pytest.raises(InputError, match="a sequence of one token"):
        prune_blocks(tmp_path / "in", snip(), tokens()[:, :1], tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Pooled(nn.Module):
    """Blocks with no words behind them."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(2))
        self.head = nn.Linear(8, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def test_a_network_of_ones_own_says_the_next_words_or_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for width in (3, VOCABULARY):
        folder = tmp_path / str(width)
        model = Pooled(width)
        write_shard(folder / "model.safetensors", model.state_dict())
        with without_values():
            empty = Pooled(width)
        if width == 3:
            with pytest.raises(InputError, match=r"Pooled gives \[1, 12, 3\] for a sequence of 12 tokens"):
                prune_blocks(folder, snip(), tokens(), tmp_path / "out", model=empty)
            assert not (tmp_path / "out").exists()
            continue
        prune_blocks(folder, snip(), tokens(), tmp_path / "out", model=empty)
        F.cross_entropy(model(tokens())[:, :-1].flatten(0, 1), tokens()[:, 1:].flatten()).backward()
        shards = Shards.of(tmp_path / "out")
        for number, layer in enumerate(model.layers):
            name = f"layers.{number}.0.weight"
            weight = layer[0].weight
            least = (weight * weight.grad).abs().flatten().argsort()[:32]
            expected = weight.detach().flatten().index_fill(0, least, 0).view(8, 8)
            assert torch.equal(shards.read([name])[name], expected)
