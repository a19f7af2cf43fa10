"""Layers that go as a whole out of networks of transformers, held against networks that skip them."""

import copy

import pytest
import torch
from torch import nn

from prunekit import Masks, load_pretrained, save_pretrained
from prunekit.errors import ModelError
from prunekit.graph import shrink_branches
from prunekit.graph.layer_lists import FewerLayers, drop_layers, fewer_layers, whole_layers
from prunekit.models import Absent
from residual_nets import without
from small_nets import copied, same
from zoo import stirred

transformers = pytest.importorskip("transformers")

WORDS = {"input_ids": torch.arange(12).reshape(2, 6) % 30}
SMALL = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "use_cache": False,
    "pad_token_id": 0,
}


def made(kind: str = "Llama", layers: int = 4, **options) -> nn.Module:
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")
    config = model.config_class(**SMALL, num_hidden_layers=layers, **options)
    return stirred(model(config)).eval()


def shrunk(model: nn.Module, *gone: int):
    names = [f"model.layers.{each}" for each in gone]
    return shrink_branches(model, WORDS, without(model, WORDS, *names, whole=True))


def skipping(model: nn.Module, *gone: int) -> nn.Module:
    """A copy in which these layers hand on what they are given."""
    model = copy.deepcopy(model)

    def passed(module, args, given):
        return (args[0], *given[1:]) if isinstance(given, tuple) else args[0]

    for each in gone:
        model.model.layers[each].register_forward_hook(passed)
    return model


def written(model: nn.Module, *, cache: bool) -> torch.Tensor:
    """What is generated behind words, some of which are none."""
    words = {**WORDS, "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])}
    given = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(**words, **given, use_cache=cache, num_beams=2)


@pytest.mark.parametrize("gone", [(0,), (3,), (0, 2), (1, 2, 3)])
def test_a_language_model_without_layers_against_one_that_skips_them(gone, tmp_path):
    model = made()
    reference = skipping(model, *gone)
    config = model.config
    result = shrunk(model, *gone)
    assert result.model is model
    torch.testing.assert_close(model(**WORDS).logits, reference(**WORDS).logits)
    left = [number for number in range(4) if number not in gone]
    assert model.config.num_hidden_layers == len(model.model.layers) == len(left)
    assert config.num_hidden_layers == 4  # it may be another network's, too
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(len(left)))
    for number, before in enumerate(left):
        own, whole = model.model.layers[number], reference.model.layers[before]
        assert same(copied(own), copied(whole))
    assert torch.equal(written(model, cache=True), written(reference, cache=False))
    model.save_pretrained(tmp_path)
    again, found = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found.values())
    torch.testing.assert_close(again.eval()(**WORDS).logits, reference(**WORDS).logits)


def test_kinds_of_layers_go_with_them():
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    model = made("Gemma2", head_dim=4, layer_types=kinds, sliding_window=4)
    reference = skipping(model, 0, 1, 3)
    shrunk(model, 0, 1, 3)
    assert model.config.layer_types == ["sliding_attention"]
    longer = {"input_ids": torch.arange(24).reshape(2, 12) % 30}
    torch.testing.assert_close(model(**longer).logits, reference(**longer).logits)
    assert torch.equal(written(model, cache=True), written(model, cache=False))


def test_the_network_is_proven_where_names_move():
    """Gradients are those of the layers as they were called before."""
    model = made()
    fewer = fewer_layers(model, {"model.layers": (0, 2)})
    assert fewer is not None
    small = copy.deepcopy(model)
    fewer.apply(small)
    before = fewer.names_before([name for name, _ in small.named_parameters()])
    assert before["model.layers.0.mlp.up_proj.weight"] == "model.layers.1.mlp.up_proj.weight"
    assert before["model.layers.1.mlp.up_proj.weight"] == "model.layers.3.mlp.up_proj.weight"
    assert all(fewer.name(old) == new for new, old in before.items())
    assert fewer.name("model.layers.2.mlp.up_proj.weight") is None
    assert fewer.name("lm_head.weight") == "lm_head.weight"


def test_names_within_lists_within_lists():
    fewer = FewerLayers({"a.1.b": (0,), "a": (0,)})
    assert fewer.name("a.1.b.2.weight") == "a.0.b.1.weight"
    assert fewer.names_before(["a.0.b.1.weight", "a.0.c"]) == {
        "a.0.b.1.weight": "a.1.b.2.weight",
        "a.0.c": "a.1.c",
    }
    inner = nn.ModuleList([nn.ModuleDict({"b": nn.ModuleList([nn.Linear(1, 1)] * 3)}) for _ in range(3)])
    model = nn.ModuleDict({"a": inner})
    kept = model.a[1].b[2]
    undo = fewer.apply(model)
    assert model.a[0].b[1] is kept
    assert [len(each.b) for each in model.a] == [2, 3]
    undo()
    assert [len(each.b) for each in model.a] == [3, 3, 3]


def test_masks_of_single_weights_move_with_their_layers():
    model = made()
    masks = without(model, WORDS, "model.layers.1", whole=True)
    own = dict(model.named_parameters())
    weight = "model.layers.2.mlp.up_proj.weight"
    some = torch.rand(own[weight].shape, generator=torch.Generator().manual_seed(0)) < 0.5
    result = shrink_branches(model, WORDS, Masks({**masks, weight: some}))
    moved = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(result.masks[moved], some)
    assert not model.get_parameter(moved)[~some].any()


@pytest.mark.parametrize("fresh", ["as it was", "smaller"])
def test_what_is_saved_is_read_into_a_network_that_is_built_either_way(fresh, tmp_path):
    model = made()
    result = shrunk(model, 0, 2)
    save_pretrained(result, tmp_path / "small")
    other = made() if fresh == "as it was" else made(layers=2)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    load_pretrained(tmp_path / "small", other)
    torch.testing.assert_close(other(**WORDS).logits, model(**WORDS).logits)
    assert other.config.num_hidden_layers == 2
    assert torch.equal(written(other, cache=True), written(model, cache=False))


def test_a_network_of_another_length_is_refused_and_left_as_it_was(tmp_path):
    model = made()
    save_pretrained(shrunk(model, 0, 2), tmp_path / "small")
    other = made(layers=3)
    before, config = copied(other), other.config
    with pytest.raises(ModelError, match=r"is another one: the model lacks 'model\.layers\.1"):
        load_pretrained(tmp_path / "small", other)
    assert same(copied(other), before)
    assert other.config is config
    assert [layer.self_attn.layer_idx for layer in other.model.layers] == [0, 1, 2]


def test_a_list_that_is_not_there_is_refused():
    with pytest.raises(ModelError, match=r"no list of layers 'model\.lay'"):
        drop_layers(made(), {"model.lay": [0]})
    with pytest.raises(ModelError, match=r"no list of layers 'model\.layers' that could lose \[4\]"):
        drop_layers(made(), {"model.layers": [4]})
    with pytest.raises(ModelError, match="does not count the layers of '0'"):
        drop_layers(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), {"0": [0]})


def test_the_first_layer_is_taken_by_its_own_name():
    model = made()
    tensors = {
        name for name, _ in model.named_parameters() if ".layers.1." in name or ".layers.3.mlp" in name
    }
    assert whole_layers(model, tensors) == {"model.layers": (1,)}
    assert whole_layers(model, {name for name, _ in model.named_parameters()}) == {}


def test_layers_that_nothing_counts_are_absent_in_their_place():
    """A network whose widths are not those of its configuration cannot be built from it."""
    model = made()
    for layer in model.model.layers:
        mlp = layer.mlp
        for each in (mlp.gate_proj, mlp.up_proj):
            each.weight = nn.Parameter(each.weight[:20].detach().clone())
        mlp.down_proj.weight = nn.Parameter(mlp.down_proj.weight[:, :20].detach().clone())
    reference = skipping(model, 0)
    assert fewer_layers(model, {"model.layers": (0,)}) is None
    shrunk(model, 0)
    assert isinstance(model.model.layers[0], Absent)
    assert [layer.self_attn.layer_idx for layer in model.model.layers[1:]] == [0, 1, 2]
    torch.testing.assert_close(model(**WORDS).logits, reference(**WORDS).logits)
    assert torch.equal(written(model, cache=True), written(reference, cache=False))
