"""Whole courses of removals against ones that start again after every removal."""

import pytest
import torch

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.losses import squared_error
from prunekit.units import eliminate, gain_derivatives, oracle_changes
from unit_nets import ERRORS, made, naive_changes


def remove(model, chain, name, unit):
    group = chain.group(name)
    with torch.no_grad():
        weight = model.get_parameter(f"{group.consumer}.weight")
        weight[:, unit * group.repeat : (unit + 1) * group.repeat] = 0


def naive_course(model, inputs, targets, error, rerank=True):
    """Outgoing weights to zero, and everything again; removed units are remembered outside."""
    chain = chain_of(model)
    left = [(group.name, unit) for group in chain.groups for unit in range(group.units)]
    order, errors, predicted = [], [], []
    changes = None
    while left:
        if rerank or changes is None:
            changes = naive_changes(model, inputs, targets, error)
        chosen = min(left, key=lambda each: float(changes[each[0]][each[1]]))
        predicted.append(float(changes[chosen[0]][chosen[1]]))
        left.remove(chosen)
        order.append(chosen)
        remove(model, chain, *chosen)
        errors.append(float(error(model(inputs), targets)))
    return order, errors, predicted


@pytest.mark.parametrize("rerank", [True, False])
@pytest.mark.parametrize("error", ["squared", "xent"])
@pytest.mark.parametrize("net", ["1 hidden", "2 hidden", "5 hidden", "no activation", "conv", "odd"])
def test_the_same_order_as_starting_again_each_time(net, error, rerank):
    model, inputs, targets = made(net, examples=20, seed=3)
    found = eliminate(chain_of(model), inputs, targets, ERRORS[error], rerank=rerank)
    assert found.before == pytest.approx(float(ERRORS[error](model(inputs), targets)), rel=1e-12)
    order, errors, predicted = naive_course(model, inputs, targets, ERRORS[error], rerank)
    # once a layer is empty nothing changes any more, and rounding decides the naive order
    alive = next((n for n, each in enumerate(predicted) if abs(each) < 1e-13), len(order))
    assert list(found.order[:alive]) == order[:alive]
    assert alive > len(order) / 3
    torch.testing.assert_close(
        found.errors[:alive], torch.tensor(errors[:alive], dtype=torch.float64), rtol=1e-10, atol=0
    )
    torch.testing.assert_close(
        found.predicted[:alive], torch.tensor(predicted[:alive], dtype=torch.float64), rtol=1e-9, atol=1e-13
    )
    if rerank:
        steps = torch.cat([torch.tensor([found.before], dtype=torch.float64), found.errors]).diff()
        torch.testing.assert_close(steps, found.predicted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("net", "budget"), [("2 hidden", 10_000), ("conv", 250_000)])
def test_a_small_budget_gives_the_same_course(net, budget):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    whole = eliminate(chain, inputs, targets, squared_error, count=8)
    parts = eliminate(chain, inputs, targets, squared_error, count=8, budget_bytes=budget)
    assert parts.order == whole.order
    torch.testing.assert_close(parts.errors, whole.errors)


def test_the_kept_units_that_come_out_give_the_last_error():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    start = {"0": torch.tensor([False, *[True] * 7])}
    found = eliminate(chain, inputs, targets, squared_error, count=6, kept=start)
    assert ("0", 0) not in found.order
    assert sum(int(each.sum()) for each in found.kept.values()) == 15 - 1 - 6
    for name, kept in found.kept.items():
        for unit in (~kept).nonzero().flatten().tolist():
            remove(model, chain, name, unit)
    assert float(squared_error(model(inputs), targets)) == pytest.approx(float(found.errors[-1]), rel=1e-12)
    assert start["0"].tolist() == [False, *[True] * 7]


def test_a_rank_of_ones_own():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    seen = []

    def second_order(kept):
        seen.append(kept)
        found = gain_derivatives(chain, inputs, targets, squared_error, kept=kept)
        return {name: each.second_order for name, each in found.items()}

    found = eliminate(chain, inputs, targets, squared_error, rank=second_order, count=4)
    assert len(seen) == 4
    assert [sum(int(each.sum()) for each in kept.values()) for kept in seen] == [15, 14, 13, 12]
    once = eliminate(chain, inputs, targets, squared_error, rank=second_order, count=4, rerank=False)
    assert once.order[0] == found.order[0]
    ranked = second_order({})
    flat = sorted((float(v), n, u) for n in ("0", "2") for u, v in enumerate(ranked[n]))
    assert [(n, u) for _, n, u in flat[:4]] == list(once.order)
    assert once.predicted.tolist() == pytest.approx([v for v, _, _ in flat[:4]])


def test_equal_changes_go_by_position():
    model, inputs, targets = made("2 hidden")
    found = eliminate(
        chain_of(model),
        inputs,
        targets,
        squared_error,
        rank=lambda kept: {name: torch.zeros(len(each)) for name, each in kept.items()},
    )
    assert list(found.order) == [("0", n) for n in range(8)] + [("2", n) for n in range(7)]


def test_a_floor_for_each_group():
    model, inputs, targets = made("2 hidden")
    found = eliminate(chain_of(model), inputs, targets, squared_error, floor=2)
    assert len(found.order) == 6 + 5
    assert [int(each.sum()) for each in found.kept.values()] == [2, 2]


def test_groups_without_a_rank_lose_nothing():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    found = eliminate(
        chain, inputs, targets, squared_error, count=3, rank=lambda _: {"2": torch.arange(7.0).flip(0)}
    )
    assert found.order == (("2", 6), ("2", 5), ("2", 4))
    with pytest.raises(InputError, match="there are 8 units"):
        eliminate(chain, inputs, targets, squared_error, count=8, rank=lambda _: {"0": torch.ones(3)})


def test_what_cannot_be_accepted():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    with pytest.raises(InputError, match="16 units cannot be removed: there are 15"):
        eliminate(chain, inputs, targets, squared_error, count=16)
    with pytest.raises(InputError, match="rank must be"):
        eliminate(chain, inputs, targets, squared_error, rank="magnitude")
    with pytest.raises(InputError, match="unit 0 of '0' is NaN"):
        eliminate(chain, inputs, targets, squared_error, rank=lambda _: {"0": torch.full((8,), torch.nan)})
    with pytest.raises(InputError, match="only 7 of the 9"):
        eliminate(chain, inputs, targets, squared_error, count=9, rank=lambda _: {"2": torch.ones(7)})


def test_no_removals_is_a_course_too():
    model, inputs, targets = made("conv")
    found = eliminate(chain_of(model), inputs, targets, squared_error, count=0)
    assert found.order == ()
    assert len(found.errors) == 0
    assert set(oracle_changes(chain_of(model), inputs, targets, squared_error)) == set(found.kept)
