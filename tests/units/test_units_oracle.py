"""The oracle, and courses of removals, against naive loops: weights to zero, the whole network run again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.errors import InputError
from prunekit.graph import chain_of
from prunekit.losses import absolute_error, squared_error
from prunekit.units import eliminate, gain_derivatives, oracle_changes
from unit_nets import ERRORS, NETS, made, mlp, naive_changes
from unit_recipes import conv_net, data, net


def same(found, expected, error_now):
    """To 1e-10 of each change, beyond the digits that the naive difference of two errors has lost."""
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=2e-15 * (1 + error_now))


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("net", NETS)
def test_equals_the_naive_loop(net, error):
    model, inputs, targets = made(net)
    found = oracle_changes(chain_of(model, inputs=True), inputs, targets, ERRORS[error])
    now = float(ERRORS[error](model(inputs), targets))
    same(found, naive_changes(model, inputs, targets, ERRORS[error]), now)


@pytest.mark.parametrize("net", ["2 hidden", "conv", "odd"])
@pytest.mark.parametrize("budget", [1, 20_000, 200_000])
def test_chunks_do_not_change_the_result(net, budget):
    model, inputs, targets = made(net, examples=23)
    chain = chain_of(model, inputs=True)
    whole = oracle_changes(chain, inputs, targets, "cross_entropy")
    for name, changes in oracle_changes(chain, inputs, targets, "cross_entropy", budget_bytes=budget).items():
        torch.testing.assert_close(changes, whole[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("net", ["2 hidden", "5 hidden", "conv", "odd"])
def test_units_that_are_off_stay_off(net):
    model, inputs, targets = made(net)
    chain = chain_of(model)
    kept = {group.name: torch.rand(group.units) > 0.4 for group in chain.groups}
    found = oracle_changes(chain, inputs, targets, squared_error, kept=kept)
    with torch.no_grad():
        for group in chain.groups:
            off = (~kept[group.name]).repeat_interleave(group.repeat)
            model.get_parameter(f"{group.consumer}.weight")[:, off] = 0
    expected = naive_changes(model, inputs, targets, squared_error)
    for name, changes in found.items():
        assert changes.isnan().tolist() == (~kept[name]).tolist()
        torch.testing.assert_close(changes[kept[name]], expected[name][kept[name]], rtol=1e-10, atol=1e-14)


def test_a_group_without_units_left():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    off = torch.zeros(8, dtype=torch.bool)
    found = oracle_changes(chain, inputs, targets, squared_error, kept={"0": off})
    assert found["0"].isnan().all()
    assert not found["2"].isnan().any()


def test_linear_layers_on_sequences():
    model = made("functions")[0]
    inputs, targets = torch.randn(20, 3, 6, dtype=torch.float64), torch.rand(20, 3, 4, dtype=torch.float64)
    for error in (squared_error, absolute_error):
        found = oracle_changes(chain_of(model, inputs=True), inputs, targets, error)
        same(found, naive_changes(model, inputs, targets, error), 3.0)


def test_regression_with_several_outputs_per_place():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Conv2d(3, 2, 3)).double()
    inputs = torch.randn(9, 2, 8, 8, dtype=torch.float64)
    targets = torch.randn(9, 2, 4, 4, dtype=torch.float64)
    found = oracle_changes(chain_of(model, inputs=True), inputs, targets, squared_error)
    same(found, naive_changes(model, inputs, targets, squared_error), 10.0)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_cross_entropy_with_large_outputs(scale):
    model, inputs, targets = made("1 hidden")
    model = model[:-1]
    with torch.no_grad():
        model[-1].weight.mul_(scale)
    found = oracle_changes(chain_of(model), inputs, targets, F.cross_entropy)
    same(found, {"0": naive_changes(model, inputs, targets, F.cross_entropy)["0"]}, scale)


def test_float32_keeps_more_digits_than_a_difference_of_errors():
    torch.manual_seed(0)
    model = mlp([20, 50, 10], last=nn.Sigmoid)
    inputs, targets = torch.rand(500, 20), torch.randint(0, 10, (500,))
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    found = oracle_changes(chain_of(model), inputs, targets, squared_error)["0"]
    naive = naive_changes(model, inputs, targets, squared_error)["0"]
    true = naive_changes(model.double(), inputs.double(), targets, squared_error)["0"]
    assert (found - true).abs().max() < 0.2 * (naive - true).abs().max()


def test_the_model_and_the_data_are_left_as_they_were():
    model, inputs, targets = made("odd")
    model[1].train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    given = inputs.clone()
    model.requires_grad_(True)
    chain = chain_of(model, inputs=True)
    found = oracle_changes(chain, inputs, targets, squared_error)
    derived = gain_derivatives(chain, inputs, targets, squared_error)
    course = eliminate(chain, inputs, targets, squared_error, count=3)
    assert not any(each.requires_grad for each in found.values())
    assert not any(each.first.requires_grad or each.second.requires_grad for each in derived.values())
    assert not course.errors.requires_grad
    assert model[1].training
    assert not model[0].training
    assert torch.equal(inputs, given)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())


def test_what_cannot_be_accepted():
    model, inputs, targets = made("2 hidden")
    chain = chain_of(model)
    with pytest.raises(InputError, match="same first dimension"):
        oracle_changes(chain, inputs, targets[:-1], squared_error)
    with pytest.raises(InputError, match="no examples"):
        oracle_changes(chain, inputs[:0], targets[:0], squared_error)
    with pytest.raises(InputError, match="no group of units 'x'"):
        oracle_changes(chain, inputs, targets, squared_error, groups=["x"])
    with pytest.raises(InputError, match="must be a boolean tensor"):
        oracle_changes(chain, inputs, targets, squared_error, kept={"0": torch.ones(8)})
    with pytest.raises(InputError, match="there is no error 'squared'"):
        oracle_changes(chain, inputs, targets, "squared")
    with pytest.raises(InputError, match="cannot be taken of these outputs"):
        oracle_changes(chain, inputs, torch.rand(30, 5, dtype=torch.float64), squared_error)
    with pytest.raises(InputError, match="cannot be taken of these outputs"):
        oracle_changes(chain, inputs, targets + 4, "cross_entropy")
    with pytest.raises(InputError, match="does not take inputs of the shape"):
        oracle_changes(chain, inputs[:, 1:], targets, squared_error)
    with pytest.raises(InputError, match="no group of units"):
        oracle_changes(chain_of(nn.Sequential(nn.Linear(9, 4))), inputs, targets, squared_error)


@pytest.mark.parametrize("processes", [2, 3, 50])
@pytest.mark.parametrize(("model", "shape"), [(net(6, 7, 5, 4), (6,)), (conv_net(), (1, 8, 8))])
def test_several_processes_give_the_same_as_one(model, shape, processes):
    torch.set_num_threads(1)
    inputs, targets = data(*shape, count=25)
    chain = chain_of(model)
    kept = {chain.groups[0].name: torch.arange(chain.groups[0].units) != 1}
    one, several = (
        oracle_changes(chain, inputs, targets, "cross_entropy", kept=kept, processes=number)
        for number in (1, processes)
    )
    assert list(one) == list(several)
    for name in one:
        torch.testing.assert_close(several[name], one[name], rtol=1e-10, atol=1e-14, equal_nan=True)


def test_no_process():
    model, (inputs, targets) = net(6, 7, 4), data(6)
    with pytest.raises(InputError, match="processes = 0: at least one is needed"):
        oracle_changes(chain_of(model), inputs, targets, "cross_entropy", processes=0)


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


def test_what_elimination_does_not_accept():
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
