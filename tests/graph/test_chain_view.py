"""A chain read from the captured graph is the one that is read symbolically, and gives the same figures."""

from __future__ import annotations

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

from chain_nets import ChainPlan, build, chain_plans
from examples import number_of_examples
from prunekit.errors import ModelError
from prunekit.graph import CouplingGraph, traced, unit_masks
from prunekit.graph.capture import captured
from prunekit.graph.chain import chain_view
from prunekit.models import lenet5, lenet_300_100, mlp, vgg_small
from prunekit.structure import INPUT, Chain, chain_of
from prunekit.structure import unit_masks as chain_masks
from prunekit.units import oracle_changes
from refused_nets import REFUSED, Net, TwoInputs
from unit_nets import NETS, made

PAPERS = {
    "lenet_300_100": (lambda: lenet_300_100((1, 28, 28), 10), (1, 28, 28)),
    "lenet5": (lambda: lenet5((1, 28, 28), 10), (1, 28, 28)),
    "vgg_small": (lambda: vgg_small((3, 16, 16), 10, widths=((8, 8), (12,))), (3, 16, 16)),
    "mlp": (lambda: mlp((7,), 3, hidden=(9, 5)), (7,)),
}


def views(model: nn.Module, inputs: Tensor, *, features: bool = False) -> tuple[Chain, Chain, CouplingGraph]:
    """The chain as it is read symbolically, and from the graph."""
    found = traced(model, inputs)
    return chain_of(model, inputs=features), chain_view(model, found.graphs[0], inputs=features), found


def assert_same(model: nn.Module, inputs: Tensor, targets: Tensor, *, seed: int = 0) -> None:
    """Groups, what the stages compute, oracle, masks and smaller networks."""
    read, view, found = views(model, inputs[:3])
    assert view.groups == read.groups
    assert dict(view.refused) == dict(read.refused)
    x = inputs
    with torch.no_grad():
        for stage in view.stages:
            before = x.clone()
            result = stage.run(x)
            assert torch.equal(x, before), f"{stage.name} changed its input"
            x = result
        assert torch.equal(x, model(inputs))
    changes, others = (oracle_changes(chain, inputs, targets, "cross_entropy") for chain in (read, view))
    assert list(others) == list(changes)
    for name, change in changes.items():
        torch.testing.assert_close(others[name], change, rtol=1e-10, atol=1e-10)
    choice = random.Random(seed)
    kept = {}
    for group in read.groups:
        flags = torch.tensor([choice.random() < 0.6 for _ in range(group.units)])
        flags[choice.randrange(group.units)] = True
        kept[group.name] = flags
    plan = {group.name: group for group in found.plan.groups}
    several = {name: flags for name, flags in kept.items() if len(flags) > 1}
    assert {name: plan[name].units for name in several} == {name: len(f) for name, f in several.items()}
    masks, other = chain_masks(model, read, several), unit_masks(model, found.plan, several)
    assert set(masks) == set(other)
    assert all(torch.equal(masks[name], other[name]) for name in masks)


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
    read, view, _ = views(model, inputs[:3], features=True)
    assert view.group(INPUT) == read.group(INPUT)


@pytest.mark.parametrize("kind", REFUSED, ids=lambda kind: kind.__name__)
def test_what_is_no_chain_is_refused_with_the_reason(kind: type[Net]) -> None:
    model = kind()
    with pytest.raises(ModelError) as caught:
        chain_view(model, captured(model, torch.randn(3, 4))[0])
    assert str(caught.value).startswith(f"layer 'a' is no link of a chain: {REFUSED[kind]}")
    assert "\n" not in str(caught.value)


def test_several_inputs_are_named() -> None:
    model, x = TwoInputs(), torch.randn(3, 4)
    with pytest.raises(ModelError, match="a chain has one input, the model's output is computed from x, y"):
        chain_view(model, captured(model, (x, x))[0])


def test_an_activation_of_several_operators_is_one_pointwise_stage() -> None:
    """The symbolic reader cannot follow x s(x) + x^3; the joints of the graph are the same as for a ReLU."""

    class Cubed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x * torch.sigmoid(1.7 * x) + 0.1 * x**3)

    model, x, targets = Cubed().eval(), torch.randn(9, 4), torch.arange(9) % 4
    chain = chain_view(model, captured(model, x)[0])
    assert [group.name for group in chain.groups] == ["a"]
    found = oracle_changes(chain, x, targets, "cross_entropy")["a"]
    with torch.no_grad():
        before = F.cross_entropy(model(x), targets)
        for unit, change in enumerate(found):
            masked = copy.deepcopy(model)
            masked.b.weight[:, unit] = 0
            torch.testing.assert_close(change, F.cross_entropy(masked(x), targets) - before)
