"""Chains of any architecture: the smaller network computes what the one with units switched off does."""

from __future__ import annotations

import copy
import random

import torch
from hypothesis import given
from hypothesis import strategies as st

from chain_nets import ChainPlan, build, chain_plans, switched_off
from examples import number_of_examples
from prunekit.graph import chain_of, parameters_after, shrink, traced, unit_masks

TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-11}


@given(plan=chain_plans(), dtype=st.sampled_from([torch.float32, torch.float64]))
@number_of_examples(100)
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
