"""Recipes on networks of the transformers library with random weights, on token numbers."""

import pytest
import torch

from prunekit.errors import ModelError
from prunekit.pruning import prune
from prunekit.recipe import Recipe
from small_nets import copied, recipe
from test_layer_obs_recipe import refitted

transformers = pytest.importorskip("transformers")
LSQ = {"name": "masked_least_squares", "damp": 0.01}
BY_LAYER = {"allocation": "per_layer", "order": "forward"}


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def llama():
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=12,
        )
    )  # fmt: skip


NETS = {"gpt2": (gpt2, ["transformer.wte", "transformer.wpe"]), "llama": (llama, ["lm_head", "*embed*"])}


def tokens(count=24, seed=0):
    found = torch.randint(40, (count, 10), generator=torch.Generator().manual_seed(seed))
    return found, found


def chosen(net, **settings) -> Recipe:
    return recipe(ignore=NETS[net][1], **settings)


@torch.no_grad()
def damage(model, dense):
    """How far the logits are from the dense network's on sequences that calibration saw."""
    inputs, _ = tokens()
    return float((model(inputs).logits - dense(inputs).logits).square().mean())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    "settings",
    [{"score": "layer_obs"}, {"score": "layer_obs", **BY_LAYER}, {"score": "magnitude", **BY_LAYER}],
    ids=["global", "layer by layer", "magnitude"],
)
def test_repaired_networks_are_closer_to_the_dense_one(net, settings):
    make, _ = NETS[net]
    distance = {}
    for name, repair in (("none", "none"), ("fitted", LSQ)):
        model = make()
        pruned = prune(model, chosen(net, **settings, repair=repair), tokens())
        distance[name] = damage(model, make().eval())
        assert pruned.kept.kept == round(0.5 * pruned.kept.total)
        for parameter, mask in pruned.masks.parameters(model):
            assert bool((parameter[~mask] == 0).all())
    assert distance["fitted"] < distance["none"]


@pytest.mark.parametrize(
    ("net", "name"), [("gpt2", "transformer.h.1.mlp.c_fc"), ("llama", "model.layers.1.mlp.up_proj")]
)
def test_a_layer_is_fitted_to_the_inputs_that_it_has_behind_the_pruned_ones(net, name):
    model = NETS[net][0]()
    before = copied(model)
    masks = prune(model, chosen(net, score="layer_obs", repair=LSQ, **BY_LAYER), tokens()).masks
    layer, seen = model.get_submodule(name), []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().double()))
    with torch.no_grad():
        model.eval()(tokens()[0])
    rows = seen[0].flatten(0, -2).numpy()
    turned = (lambda value: value.mT) if net == "gpt2" else (lambda value: value)
    weight, mask = turned(before[f"{name}.weight"]).double().numpy(), turned(masks[f"{name}.weight"]).numpy()
    bias = before[f"{name}.bias"].double().numpy() if layer.bias is not None else None
    new, new_bias = refitted(rows, weight, bias, mask)
    assert torch.allclose(turned(layer.weight).detach().double(), torch.from_numpy(new), atol=1e-4)
    if bias is not None:
        assert torch.allclose(layer.bias.detach().double(), torch.from_numpy(new_bias), atol=1e-4)


def test_patterns_of_two_in_four():
    model = llama()
    masks = prune(
        model, chosen("llama", score="layer_obs", granularity="n:m", repair=LSQ, **BY_LAYER), tokens()
    ).masks
    for mask in masks.values():
        assert bool((mask.view(-1, 4).sum(1) == 2).all())


def test_an_embedding_that_is_the_output_layer_too_is_named():
    with pytest.raises(ModelError, match=r"transformer\.wte\.weight is a parameter of 'transformer\.wte'"):
        recipe(score="layer_obs").plan(gpt2())
