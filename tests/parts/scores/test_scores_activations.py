"""Scores of heads and widths by what the next layer reads, against sums over tensors caught by hooks."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch import nn

from prunekit import prune
from prunekit.methods import recipe
from prunekit.parts.granularity import Unit
from prunekit.parts.scores import ActivationNorm, Fluctuation
from prunekit.pruning import Session

KINDS = ("heads", "MLP width")


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **{"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": 50},
    )
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def tokens() -> torch.Tensor:
    return torch.randint(0, 50, (6, 10), generator=torch.Generator().manual_seed(1))


def caught(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """(sequences, length, inputs) float64: what the last matrices of attention and MLP are given."""
    found, hooks = {}, []
    for name, layer in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):
            hooks.append(
                layer.register_forward_pre_hook(lambda _, x, name=name: found.update({name: x[0].double()}))
            )
    with torch.no_grad():
        model(ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def scores_of(model: nn.Module, name: str, **settings: object) -> dict[str, torch.Tensor]:
    chosen = recipe(name, sparsity=0.5)
    chosen = chosen.model_copy(update={"granularity": Unit(kinds=KINDS), **settings})
    ids = tokens()
    batches = [{"input_ids": row[None], "labels": row[None]} for row in ids]
    return dict(Session(model, chosen, data=batches).scores())


def by_layer(scores: dict[str, torch.Tensor], reader: str) -> torch.Tensor:
    """The scores of the group that a matrix reads, which is named by what makes its units."""
    place, _, short = reader.rpartition(".")
    maker = {"o_proj": "q_proj", "down_proj": "gate_proj"}[short]
    (found,) = (each for name, each in scores.items() if name.startswith(f"{place}.{maker}"))
    return found


@pytest.mark.parametrize("standardize", [True, False])
def test_fluctuations_are_variances_times_squares_of_weights(standardize: bool) -> None:
    model = llama()
    found = scores_of(model, "flap", score=Fluctuation(standardize=standardize))
    inputs = caught(model, tokens())
    assert len(inputs) == len(found) == 4
    for name, x in inputs.items():
        weight = model.get_submodule(name).weight.detach().double()
        product = x.flatten(0, 1).var(0, correction=0) * weight.square().sum(0)
        if standardize:
            product = (product - product.mean()) / product.std(correction=0)
        units = 2 if name.endswith("o_proj") else 24  # two heads of queries share one of keys and values
        assert by_layer(found, name).tolist() == pytest.approx(
            product.view(units, -1).mean(1).tolist(), rel=1e-6, abs=1e-9
        )


def test_norms_are_means_over_the_sequence_and_squares_over_examples() -> None:
    model = llama()
    found = scores_of(model, "minitron", score=ActivationNorm())
    for name, x in caught(model, tokens()).items():
        norm = x.abs().mean(1).square().mean(0)
        units = 2 if name.endswith("o_proj") else 24
        expected = norm.view(units, -1).sum(1).sqrt()
        assert by_layer(found, name).tolist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_padding_is_left_out_of_an_examples_mean() -> None:
    model, ids = llama(), tokens()
    chosen = recipe("minitron").model_copy(update={"granularity": Unit(kinds=KINDS)})
    real = torch.ones_like(ids)
    real[::2, 7:] = 0
    padded = [{"input_ids": ids, "attention_mask": real, "labels": ids}]
    apart = [
        {"input_ids": row[None, : int(keep.sum())], "labels": row[None, : int(keep.sum())]}
        for row, keep in zip(ids, real, strict=True)
    ]
    together, one_by_one = (Session(model, chosen, data=data).scores() for data in (padded, apart))
    for name, expected in one_by_one.items():
        assert together[name].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_of_filters_the_kernel_is_summed_over() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(20, 1, 8, 8)
    targets = torch.randint(0, 3, (20,))
    with torch.no_grad():
        read = model[1](model[0](x)).double()
    patches = nn.functional.unfold(read, 3).movedim(1, 2).flatten(0, 1)
    weight = model[2].weight.detach().double().flatten(1)
    products = patches.var(0, correction=0) * weight.square().sum(0)
    plain = recipe("flap").model_copy(update={"score": Fluctuation(standardize=False)})
    found = Session(model, plain, data=(x, targets)).scores()
    assert found["0"].tolist() == pytest.approx(products.view(6, -1).sum(1).tolist(), rel=1e-5)
    norms = Session(model, recipe("minitron"), data=(x, targets)).scores()
    expected = read.abs().mean((2, 3)).square().mean(0).sqrt()
    assert norms["0"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_mean_of_what_goes_becomes_a_bias() -> None:
    """As published: the bias is raised by the means of the removed inputs times their weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    x, targets = torch.randn(40, 5), torch.randint(0, 3, (40,))
    before = copy.deepcopy(model)
    pruned = prune(model, recipe("flap", sparsity=0.5, compensate=True), (x, targets))
    gone = ~pruned.kept["0"]
    assert int(gone.sum()) == 6
    with torch.no_grad():
        mean = before[:2](x).mean(0)
        expected = before[2].bias + before[2].weight[:, gone] @ mean[gone]
        assert torch.allclose(model[2].bias, expected, atol=1e-6)
        variance = before[:2](x).var(0) * before[2].weight.square().sum(0)
    assert set(variance.argsort()[:6].tolist()) == set(gone.nonzero().flatten().tolist())
