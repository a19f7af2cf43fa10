"""Bits of layers by rate and distortion, within a number of bytes: against all choices there are."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from prunekit import Recipe, prune
from prunekit.errors import InputError, ModelError
from small_nets import blobs, mlp, same

DATA = blobs(40, dtype=torch.float64)
BITS = (1, 2, 3)


def net() -> nn.Sequential:
    return mlp(10, 12, 8, 3, dtype=torch.float64)


def recipe(**quantize: object) -> Recipe:
    return Recipe.parse(
        {
            "schedule": {"name": "one_shot", "sparsity": 0.5},
            "quantize": {"name": "rate_distortion", "bits": BITS, "half_biases": False, **quantize},
        }
    )


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.dim() > 1}


def curvature(model: nn.Module) -> dict[str, Tensor]:
    """The diagonal of J' (diag(p) - p p') J, the mean over examples, one example after the other."""
    own = weights(model)
    found = {name: torch.zeros_like(each) for name, each in own.items()}
    for x in DATA[0]:
        slopes = jacrev(lambda values, x=x: functional_call(model, values, x[None])[0])(own)
        p = model(x[None])[0].softmax(0).detach()
        hessian = torch.diag(p) - p.outer(p)
        for name, slope in slopes.items():
            curved = torch.einsum("o...,op,p...->...", slope.detach(), hessian, slope.detach())
            found[name] += curved / len(DATA[0])
    return found


def rate_of(weight: Tensor) -> float:
    """Bytes: the entropy over nonzero weights, and 4 for each value."""
    _, counts = np.unique(weight[weight != 0].numpy(), return_counts=True)
    return -(counts * np.log2(counts / counts.sum())).sum() / 8 + 4 * len(counts)


@pytest.mark.parametrize("importance", ["curvature", "none"])
def test_no_choice_of_as_few_bytes_has_less_distortion(importance):
    before = net()
    prune(before, Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}}))
    h = curvature(before) if importance == "curvature" else None

    def distortion(name: str, weight: Tensor) -> float:
        squared = (weight - weights(before)[name]).square()
        return float((squared if h is None else h[name] * squared / 2).sum())

    alone = {}
    for bits in BITS:
        model = net()
        prune(model, recipe(bits=(bits,), bytes=100_000, importance=importance), DATA)
        alone[bits] = {
            name: (rate_of(each), distortion(name, each), each) for name, each in weights(model).items()
        }
    names = list(weights(before))
    choices = [
        (
            sum(alone[bits][name][0] for name, bits in zip(names, each, strict=True)),
            sum(alone[bits][name][1] for name, bits in zip(names, each, strict=True)),
            each,
        )
        for each in itertools.product(BITS, repeat=len(names))
    ]
    budgets = np.linspace(min(choice[0] for choice in choices) + 1, max(choice[0] for choice in choices), 6)
    seen = set()
    for budget in budgets:
        model = net()
        prune(model, recipe(bytes=int(budget), importance=importance), DATA)
        found = weights(model)
        bits = tuple(next(b for b in BITS if torch.equal(alone[b][name][2], found[name])) for name in names)
        seen.add(bits)
        rate, lost = next((rate, lost) for rate, lost, each in choices if each == bits)
        assert rate <= int(budget)
        assert all(other >= lost * (1 - 1e-9) for spent, other, _ in choices if spent <= rate)
    assert len(seen) > 2


def test_values_are_trained_and_what_cannot_be_met_leaves_the_network_as_it_was():
    model = net()
    training = {"optimizer": "sgd", "lr": 0.05, "iterations": 3}
    prune(model, recipe(bytes=150, training=training, half_biases=True), DATA)
    for weight in weights(model).values():
        assert 1 < len(weight.unique()) <= 9
        assert torch.equal(weight, weight.half().double())
    model = net()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    with pytest.raises(
        InputError, match="quantize rate_distortion: bytes: the budget is 3, and the cheapest"
    ):
        prune(model, recipe(bytes=3), DATA)
    assert same(model.state_dict(), before)
    with pytest.raises(InputError, match="quantize 'rate_distortion' needs data"):
        prune(model, recipe(bytes=300))
    prune(model, recipe(bytes=300, importance="none"))
    transposed = nn.Sequential(nn.ConvTranspose2d(1, 2, 3), nn.Flatten(), nn.Linear(50, 3))
    with pytest.raises(ModelError, match="ConvTranspose2d"):
        prune(transposed, recipe(bytes=300), (torch.randn(20, 1, 3, 3), torch.arange(20) % 3))
    for wrong in ({"bytes": 0}, {"bits": ()}, {"bits": (0,)}, {"importance": "size"}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            recipe(**{"bytes": 300, **wrong})
