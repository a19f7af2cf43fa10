"""Residual branches of the zoo's networks taken out, of transformers held against zeros put in by hand."""

import copy

import pytest
import torch
from torch import nn
from wide_zoo import made_wide

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
    if (name, whole) == ("hf-llama", True):  # the layer behind it has moved up
        assert len(model.model.layers) == model.config.num_hidden_layers == 1
    else:
        assert not {f"{name}.weight" for name in last} & model.state_dict().keys()


AS_GRAPHS = {*((name, whole) for name in ("res2net", "hf-t5") for whole in (False, True)), ("swin", False)}
AS_GRAPHS |= {("hf-gpt2", True)}  # without attention no cache counts the words, whose places it looks up


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


CACHED = (
    *("hf-gpt2", "hf-opt", "hf-llama-tied", "hf-mistral", "hf-qwen2", "hf-gpt-neox", "hf-gptj", "hf-falcon"),
    *("hf-phi", "hf-gemma", "hf-lfm2", "hf-t5", "hf-bart", "hf-whisper"),
)
WHOLE = ("hf-bloom", "hf-gemma2", "hf-gemma3", "hf-gpt2", "hf-opt", "hf-lfm2")


def generated(model: nn.Module, inputs, *, cache: bool) -> torch.Tensor:
    """What a language model writes, always the likeliest word."""
    given = {name: value for name, value in inputs.items() if not name.startswith("decoder")}
    start = {"decoder_start_token_id": 0} if model.config.is_encoder_decoder else {}
    settings = {"max_new_tokens": 5, "do_sample": False, "num_beams": 1, "eos_token_id": None}
    return model.generate(**given, **settings, **start, pad_token_id=0, use_cache=cache)


@pytest.mark.parametrize(
    ("name", "whole"), [*((name, False) for name in CACHED), *((name, True) for name in WHOLE)]
)
def test_language_models_without_blocks_write_the_same_with_a_cache(name, whole):
    pytest.importorskip("transformers")
    model, inputs = made_wide(name)
    blocks = [
        each
        for each in names(model, inputs, whole=whole)
        if "decoder" in each or not model.config.is_encoder_decoder
    ]
    removed = blocks[-1] if name == "hf-t5" else blocks[0]
    result = shrink_branches(model, inputs, without(model, inputs, removed, whole=whole))
    assert result.model is model
    assert torch.equal(generated(model, inputs, cache=True), generated(model, inputs, cache=False))
    assert not whole or not any(name.endswith("absent") for name in model.state_dict())
