"""Residual branches of the zoo's networks taken out, of transformers held against zeros put in by hand."""

import copy

import pytest
import torch
from torch import nn

from prunekit.graph import GraphModel, shrink_branches
from prunekit.measure import count
from residual_nets import names, without
from small_nets import copied, same
from zoo import made


def silenced(model: nn.Module, layers: list[str]) -> nn.Module:
    """A copy in which what these layers give is zero."""
    model = copy.deepcopy(model)
    for name in layers:
        model.get_submodule(name).register_forward_hook(lambda module, args, given: torch.zeros_like(given))
    return model


@pytest.mark.parametrize(
    ("name", "blocks", "whole", "removed", "last"),
    [
        (
            "hf-bert",
            4,
            False,
            ["bert.encoder.layer.0.attention.output", "bert.encoder.layer.1.output"],
            ["bert.encoder.layer.0.attention.output.dense", "bert.encoder.layer.1.output.dense"],
        ),
        (
            "hf-bert",
            2,
            True,
            ["bert.encoder.layer.1"],
            ["bert.encoder.layer.1.attention.output.dense", "bert.encoder.layer.1.output.dense"],
        ),
        (
            "hf-llama",
            4,
            False,
            ["model.layers.0.self_attn", "model.layers.1.mlp"],
            ["model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj"],
        ),
        (
            "hf-llama",
            2,
            True,
            ["model.layers.0"],
            ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"],
        ),
    ],
)
def test_transformers_without_blocks_keep_their_class_and_function(name, blocks, whole, removed, last):
    pytest.importorskip("transformers")
    model, inputs = made(name)
    assert len(names(model, inputs, whole=whole)) == blocks
    wanted, tokens = silenced(model, last)(**inputs).logits, (inputs["input_ids"],)
    result = shrink_branches(model, inputs, without(model, inputs, *removed, whole=whole))
    assert result.model is model
    torch.testing.assert_close(model(**inputs).logits, wanted)
    longer = {"input_ids": torch.arange(24).reshape(3, 8) % 30}
    torch.testing.assert_close(
        model(**longer).logits, silenced(made(name)[0], last)(**longer).logits
    )  # any shape of inputs will do
    assert count(model, tokens).macs < count(made(name)[0], tokens).macs
    assert not {f"{name}.weight" for name in last} & model.state_dict().keys()


AS_GRAPHS = {*((name, whole) for name in ("res2net", "hf-t5") for whole in (False, True)), ("swin", False)}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        *("resnet-bottleneck", "mobilenet-v3", "res2net", "hrnet", "mlp-mixer", "vit", "swin", "hf-t5"),
        *("hf-swin", "hf-qwen2", "hf-resnet", "hf-gpt2", "hf-vit"),
    ],
)
def test_any_network_without_its_first_and_last_block(name, whole):
    if name.startswith("hf"):
        pytest.importorskip("transformers")
    model, inputs = made(name)
    before = copied(model)
    every = names(model, inputs, whole=whole)
    masks = without(model, inputs, every[0], every[-1], whole=whole)
    masked = copy.deepcopy(model)
    masks.apply(masked)
    result = shrink_branches(model, inputs, masks)
    assert result.deviation.accepted
    assert (result.form == "graph") == ((name, whole) in AS_GRAPHS)
    if result.form == "graph":
        assert result.reason
        assert isinstance(result.model, GraphModel)
        assert same(copied(model), before)  # it is a new network
    lost = sum(mask.numel() for mask in masks.values())
    scalars = result.parameters_before - lost - result.parameters_after
    assert abs(scalars) <= (0 if result.form == "graph" else lost // 10)
    call = inputs if isinstance(inputs, dict) else None
    found = [net(**call) if call else net(inputs) for net in (masked, result.model)]
    first, second = (each if isinstance(each, torch.Tensor) else each[0] for each in found)
    torch.testing.assert_close(second, first)
