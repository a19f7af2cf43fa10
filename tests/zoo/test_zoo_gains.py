"""Gains of units on networks of all kinds: the oracle against masks, derivatives against torch.func."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from group_nets import all_groups, gained, naive_changes
from prunekit.batches import arguments
from prunekit.graph import Coupled
from prunekit.graph.proof_run import tensors_in
from prunekit.graph.reference_run import exact
from prunekit.losses import squared_error
from prunekit.models import ResNet
from prunekit.units import gain_derivatives, gain_sweep, oracle_changes
from zoo import OWN, made, stirred

FIVE = ["resnet-20", "unet", "mobilenet-v2", "hf-bert", "hf-llama"]
TRAPS = {
    "shufflenet": "splits and shuffles",
    "convnext": "layer norms over the units",
    "swin": "shifted windows",
    "lstm": "one layer makes and reads its units",
    "hf-gpt2": "queries, keys and values of one layer",
    "hf-swin": "constants that are written into each other",
    "hf-t5": "keys and queries of two sides",
}


class Logits(nn.Module):
    """A network that gives one tensor."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return tensors_in(self.inner(*args, **kwargs))[0]


def network(name: str) -> tuple[Coupled, Any, Tensor]:
    """Its groups, traced on other examples than the inputs that are given, and targets; in float64."""
    if name == "resnet-20":
        torch.manual_seed(0)
        model: nn.Module = stirred(ResNet((3, 8, 8), 5, depth=20, width=4)).eval()
        example: Any = torch.randn(2, 3, 8, 8)
    else:
        if name not in OWN:
            pytest.importorskip("transformers")
        model, example = made(name)
    model = Logits(model.double()).eval()
    inputs = mapped(example, lambda x: torch.cat([x, x.flip(-1), x[:1]]))
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        outputs = model(*args, **kwargs)
    coupled = all_groups(model, mapped(example, lambda x: x))
    return coupled, inputs, torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).double()


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value.double() if value.is_floating_point() else value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    return tuple(mapped(item, change) for item in value)


@pytest.mark.parametrize("name", [*FIVE, *TRAPS])
def test_the_oracle_is_the_naive_loop(name: str) -> None:
    with exact():
        coupled, inputs, targets = network(name)
        some = None if name in FIVE else 4
        expected = naive_changes(coupled, inputs, targets, squared_error, some)
        found = oracle_changes(coupled, inputs, targets, "squared_error", budget_bytes=10**6)
    assert list(found) == list(expected)
    for group, changes in expected.items():
        torch.testing.assert_close(found[group][:some], changes, rtol=1e-9, atol=1e-9)
    if name in FIVE:
        mine, naive = (torch.cat(list(each.values())) for each in (found, expected))
        # units that do nothing share their ranks: what they change is nothing but rounding
        orders = [
            (each / naive.abs().max()).round(decimals=12).argsort(stable=True) for each in (mine, naive)
        ]
        assert orders[0].tolist() == orders[1].tolist()


@pytest.mark.parametrize("name", FIVE)
def test_derivatives_are_those_of_torch_func(name: str) -> None:
    with exact():
        coupled, inputs, targets = network(name)
        names = [group.name for group in coupled.groups]
        chosen = names[:3] + names[-2:]
        found = gain_derivatives(coupled, inputs, targets, "squared_error", groups=chosen)
        assert list(found) == list(dict.fromkeys(chosen))
        for group in dict.fromkeys(chosen):
            first, second = by_torch_func(coupled, group, inputs, targets)
            torch.testing.assert_close(found[group].first, first, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(found[group].second, second, rtol=1e-8, atol=1e-8)


def by_torch_func(coupled: Coupled, name: str, inputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient and diagonal of the Hessian, where gains multiply the weights of a copy."""
    group = coupled.group(name)
    args, kwargs = arguments(inputs)
    makers = [member.tensor.rpartition(".")[0] for member in group.members if member.role == "producer"]
    readers = [member for member in group.members if member.role == "consumer"]
    rows = [] if readers else [each for each in makers if "quer" in each or ".q" in each]

    def error(gains: Tensor) -> Tensor:
        parameters = gained(coupled, group, gains, rows)
        return squared_error(torch.func.functional_call(coupled.model, parameters, args, kwargs), targets)

    ones = torch.ones(group.units, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        gradient = torch.func.grad(error)(ones)
        hessian = torch.func.hessian(error)(ones)
    return gradient, hessian.diagonal()


@pytest.mark.parametrize("name", ["unet", "hf-bert"])
def test_gain_sweeps_run_from_off_through_now(name: str) -> None:
    coupled, inputs, targets = network(name)
    group = next(group for group in coupled.groups if not group.normalised)
    found = gain_sweep(
        coupled, inputs, targets, "squared_error", [(group.name, 1)], gains=torch.tensor([0.0, 0.5, 1.0])
    )[0]
    args, kwargs = arguments(inputs)
    with torch.no_grad():
        now = squared_error(coupled.model(*args, **kwargs), targets)
        gains = torch.ones(group.units, dtype=torch.float64)
        gains[1] = 0.5
        weights = gained(coupled, group, gains)
        half = squared_error(torch.func.functional_call(coupled.model, weights, args, kwargs), targets)
    off = now + oracle_changes(coupled, inputs, targets, "squared_error")[group.name][1]
    torch.testing.assert_close(found, torch.stack([off, half, now]), rtol=1e-10, atol=1e-10)
