"""Every network of the zoo: half of all that can go goes, without hints, with the proof."""

from __future__ import annotations

import copy

import pytest
import torch
from constructions import WORDS, attention

from prunekit.batches import arguments
from prunekit.errors import InputError, ModelError
from prunekit.graph import GraphModel, ShrinkResult, prune_groups, shrink
from prunekit.graph.proof_run import tensors_in
from zoo import OWN, ZOO, made, stirred

# their code divides the width of the stream by the number of heads, or lays it out by it
WITH_HEADS = {"vit"}


@pytest.mark.parametrize("name", list(ZOO))
def test_half_of_everything(name: str) -> None:
    if name not in OWN:
        pytest.importorskip("transformers")
    model, inputs = made(name)
    before = copy.deepcopy(model)
    names = [key for key, _ in model.named_parameters(remove_duplicate=False)]
    shapes = {key: value.shape for key, value in model.named_parameters()}
    result = prune_groups(model, inputs, 0.5)
    _is_smaller(result)
    assert isinstance(result.model, GraphModel) == (result.form == "graph")
    assert [key for key, _ in result.model.named_parameters(remove_duplicate=False)] == names or (
        sorted(key for key, _ in result.model.named_parameters(remove_duplicate=False)) == sorted(names)
    )
    if result.form == "graph":
        assert {key: value.shape for key, value in model.named_parameters()} == shapes
    assert type(result.model) is type(before) or result.form == "graph"
    assert result.form == "modules", result.reason
    assert bool(result.stayed) == (name in WITH_HEADS)
    assert all("the code asks for other sizes, at line" in reason for reason in result.stayed.values())
    _trains(result, inputs)


@pytest.mark.parametrize("name", ["q (head width)", "v"])
def test_narrower_keys_or_values_are_laid_out_in_another_order(name: str) -> None:
    """Attention whose keys and values have the same width gives what no `contiguous` has to copy."""
    torch.manual_seed(0)
    model = stirred(attention()).eval()
    result = shrink(model, WORDS, {name: torch.arange(4) > 0})
    assert result.form == "graph"
    assert [(each.name, each.after) for each in result.groups] == [(name, 3)]
    assert result.deviation.accepted
    _trains(result, WORDS)


def _is_smaller(result: ShrinkResult) -> None:
    assert result.groups
    assert all(1 <= group.after < group.before for group in result.groups)
    assert result.deviation.accepted
    counted = sum(parameter.numel() for parameter in result.model.parameters())
    assert result.parameters_after == counted < result.parameters_before


def _trains(result: ShrinkResult, inputs: object) -> None:
    args, kwargs = arguments(inputs)
    for module in result.model.modules():
        module.training = True
    outputs = tensors_in(result.model(*args, **kwargs))
    sum(output.square().sum() for output in outputs).backward()
    missing = [key for key, value in result.model.named_parameters() if value.grad is None]
    assert all("embed" in key or "mask_token" in key or "pooler" in key for key in missing), missing


def test_flags_of_parameters_stay() -> None:
    model, inputs = made("resnet-basic")
    model.body[1].conv1[0].weight.requires_grad_(False)
    model.body[2].train()
    modes = [module.training for module in model.modules()]
    result = prune_groups(model, inputs, 0.5)
    assert result.model is model
    assert not model.body[1].conv1[0].weight.requires_grad
    assert model.body[1].conv2[0].weight.requires_grad
    assert [module.training for module in model.modules()] == modes
    assert model.body[1].conv1[0].out_channels == model.body[1].conv2[0].in_channels == 4


def test_tied_weights_stay_tied() -> None:
    pytest.importorskip("transformers")
    model, inputs = made("hf-llama-tied")
    result = prune_groups(model, inputs, 0.5, residual=True)
    small = result.model
    assert small.get_parameter("lm_head.weight") is small.get_parameter("model.embed_tokens.weight")
    assert small.get_parameter("lm_head.weight").shape == (30, 8)


def test_a_residual_stream_when_asked_for() -> None:
    model, inputs = made("vit")
    result = prune_groups(model, inputs, 0.5, residual=True)
    assert result.model.get_parameter("token").shape == (1, 1, 8)
    assert result.deviation.accepted
    assert torch.isfinite(result.model(inputs)).all()


@pytest.mark.parametrize(
    "name", ["hf-bert", "hf-gpt2", "hf-llama", "hf-mistral", "hf-qwen2", "hf-t5", "hf-vit"]
)
def test_heads_go_within_the_classes_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    model, inputs = made(name)
    result = prune_groups(model, inputs, 0.5, kinds=["heads", "MLP width"])
    assert result.form == "modules", result.reason
    assert result.model is model


def test_kinds_that_there_are_not() -> None:
    model, inputs = made("vgg")
    with pytest.raises(ModelError, match=r"no group of the kind heads can be .*, but filters"):
        prune_groups(model, inputs, 0.5, kinds=["heads"])


def test_a_sparsity_in_per_cent() -> None:
    model, inputs = made("vgg")
    with pytest.raises(InputError, match=r"sparsity must be in \[0, 1\), got 50"):
        prune_groups(model, inputs, 50)
