"""A chain read from the captured graph computes what the network does; its units are those of the plan."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from chain_nets import ChainPlan, build, chain_plans, switched_off
from examples import number_of_examples
from prunekit.graph import INPUT, chain_of, parameters_after, shrink, traced, unit_masks
from prunekit.graph.chain_view import chain_view
from prunekit.models import MLP, LeNet5, LeNet300100, VGGSmall
from prunekit.units import oracle_changes
from refused_nets import Net
from unit_nets import NETS, made

PAPERS = {
    "lenet_300_100": (lambda: LeNet300100((1, 28, 28), 10), (1, 28, 28)),
    "lenet5": (lambda: LeNet5((1, 28, 28), 10), (1, 28, 28)),
    "vgg_small": (lambda: VGGSmall((3, 16, 16), 10, widths=((8, 8), (12,))), (3, 16, 16)),
    "mlp": (lambda: MLP((7,), 3, hidden=(9, 5)), (7,)),
}


def assert_same(model: nn.Module, inputs: Tensor, targets: Tensor, *, seed: int = 0) -> None:
    """What the stages compute, the masks of units, and the oracle beside each unit masked by the plan."""
    found = traced(model, inputs[:3])
    chain = chain_view(model, found)
    on_its_own = chain_of(model)
    assert on_its_own.groups == chain.groups
    assert dict(on_its_own.refused) == dict(chain.refused)
    x = inputs
    with torch.no_grad():
        for stage, other in zip(chain.stages, on_its_own.stages, strict=True):
            before = x.clone()
            result = stage.run(x)
            assert torch.equal(x, before), f"{stage.name} changed its input"
            assert torch.equal(other.run(x), result)
            x = result
        assert torch.equal(x, model(inputs))
    choice = random.Random(seed)
    plan = {group.name: group for group in found.plan.groups}
    several = {}
    for group in chain.groups:
        if group.units > 1:
            flags = torch.tensor([choice.random() < 0.6 for _ in range(group.units)])
            flags[choice.randrange(group.units)] = True
            several[group.name] = flags
            assert plan[group.name].units == group.units
    for name, changes in oracle_changes(chain, inputs, targets, "cross_entropy").items():
        for unit in choice.sample(range(len(changes)), min(3, len(changes))) if name in several else ():
            flags = torch.ones(len(changes), dtype=torch.bool)
            flags[unit] = False
            masked = copy.deepcopy(model)
            unit_masks(masked, found.plan, {name: flags}).apply(masked)
            with torch.no_grad():
                naive = F.cross_entropy(masked(inputs), targets) - F.cross_entropy(model(inputs), targets)
            torch.testing.assert_close(changes[unit], naive, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
def test_networks_of_the_units(name: str) -> None:
    assert_same(*made(name))


@pytest.mark.parametrize("name", PAPERS)
def test_networks_of_the_papers(name: str) -> None:
    build_it, shape = PAPERS[name]
    model = build_it().double().eval()
    assert_same(model, torch.randn(6, *shape), torch.arange(6) % 3)


@given(plan=chain_plans())
@number_of_examples(20)
def test_random_chains(plan: ChainPlan) -> None:
    built = build(plan, torch.float64)
    assert_same(built.model, built.inputs, torch.tensor([0, 2, 1]), seed=plan.seed)


@pytest.mark.parametrize("name", ["1 hidden", "conv", "odd"])
def test_input_features(name: str) -> None:
    model, inputs, _ = made(name)
    found = traced(model, inputs[:3], inputs=True)
    group = chain_of(model, inputs[:3], inputs=True).group(INPUT)
    assert group == chain_of(model, inputs=True).group(INPUT)
    assert [group.units] * (group.units > 1) == [
        each.units for each in found.plan.groups if each.name == INPUT
    ]


def test_an_activation_of_several_operators_is_one_pointwise_stage() -> None:
    """x s(x) + x^3: the joints of the graph are the same as for a ReLU."""

    class Cubed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x * torch.sigmoid(1.7 * x) + 0.1 * x**3)

    model, x, targets = Cubed().eval(), torch.randn(9, 4), torch.arange(9) % 4
    chain = chain_view(model, traced(model, x))
    assert [group.name for group in chain.groups] == ["a"]
    found = oracle_changes(chain, x, targets, "cross_entropy")["a"]
    with torch.no_grad():
        before = F.cross_entropy(model(x), targets)
        for unit, change in enumerate(found):
            masked = copy.deepcopy(model)
            masked.b.weight[:, unit] = 0
            torch.testing.assert_close(change, F.cross_entropy(masked(x), targets) - before)


TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


@given(plan=chain_plans(), dtype=st.sampled_from([torch.float32, torch.float64]))
@number_of_examples(40)
def test_shrunk_agrees_with_units_switched_off(plan: ChainPlan, dtype: torch.dtype) -> None:
    built = build(plan, dtype)
    model = built.model
    chain = chain_of(model)
    assert {group.name: group.units for group in chain.groups} == built.units
    assert {group.name: group.consumer for group in chain.groups} == built.reader
    found = traced(model, built.inputs)
    choice = random.Random(plan.seed)
    kept = {}
    for name, units in built.units.items():
        flags = [choice.random() < 0.6 for _ in range(units)]
        flags[choice.randrange(units)] = True
        kept[name] = torch.tensor(flags)
    several = {name: flags for name, flags in kept.items() if len(flags) > 1}  # one alone always stays
    expected = switched_off(built, kept, built.inputs)
    with torch.no_grad():
        x = built.inputs
        for stage in chain.stages:
            x = stage.run(x)
        assert torch.equal(x, model(built.inputs))
        masked = copy.deepcopy(model)
        unit_masks(masked, found.plan, several).apply(masked)
        _assert_close(masked(built.inputs), expected, TOLERANCE[dtype])
    predicted = parameters_after(model, found.plan, several)
    result = shrink(model, built.inputs, several)
    with torch.no_grad():
        _assert_close(model(built.inputs), expected, TOLERANCE[dtype])
    assert predicted == result.parameters_after == sum(p.numel() for p in model.parameters())
    for name, flags in kept.items():
        assert len(getattr(model, name).weight) == int(flags.sum())
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    # nothing is left that does not fit: the smaller network is a chain like any other
    assert [group.units for group in chain_of(model).groups] == [int(f.sum()) for f in kept.values()]


def _assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    scale = max(1.0, float(expected.abs().max()))
    assert float((found - expected).abs().max()) <= tolerance * scale
