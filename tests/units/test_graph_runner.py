"""Runs of networks that are no chains: chunks, units that are off, written views, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from group_nets import Attention, Halves, all_groups, images, naive_changes, small_resnet
from prunekit.errors import InputError
from prunekit.graph import chain_of, unit_masks
from prunekit.graph.capture import captured_in
from prunekit.losses import cross_entropy, squared_error
from prunekit.units import (
    diagonal_recursion,
    eliminate,
    gain_derivatives,
    graph_runner,
    oracle_changes,
    relevance,
)
from unit_nets import made


class Written(nn.Module):
    """Values are changed through views, in place and without."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x += 0.1
        y = torch.tanh(self.b(x))
        y[:, :, 0] = y[:, :, 0] * 2
        y[:, :, :, 1].mul_(3)
        return self.c(y.mean((2, 3)))


class ByItself(nn.Module):
    """Two makers of units that an operator alone reads, as a product and as a sum."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(6, 4)
        self.out = nn.Linear(2, 3)

    def forward(self, x):
        product = (torch.tanh(self.a(x)).unsqueeze(1) @ torch.tanh(self.b(x)).unsqueeze(2)).squeeze(1)
        return self.out(torch.cat([product, torch.sigmoid(self.c(x)).sum(1, keepdim=True)], 1))


class Spread(nn.Module):
    """A residual network of layers on rows, with the mean over units in it, with two arguments."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, scale):
        x = torch.tanh(self.a(x)) * scale
        x = x + torch.tanh(self.b(x))
        return self.c(x - x.mean(1, keepdim=True))


class Recurrent(nn.Module):
    """Units before an LSTM, and behind it."""

    def __init__(self):
        super().__init__()
        self.first, self.into = nn.Linear(6, 5), nn.Linear(5, 5)
        self.lstm = nn.LSTM(5, 4, batch_first=True)
        self.hidden, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        hidden, _ = self.lstm(self.into(torch.tanh(self.first(x))))
        return self.out(torch.tanh(self.hidden(hidden[:, -1])))


def doubles(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


NETS = {
    "residual": (small_resnet, lambda n: (doubles(n, 3, 8, 8),)),
    "attention": (Attention, lambda n: (doubles(n, 5, 12),)),
    "halves": (Halves, lambda n: (doubles(n, 6),)),
    "written": (Written, lambda n: (doubles(n, 3, 8, 8),)),
    "by itself": (ByItself, lambda n: (doubles(n, 6),)),
    "recurrent": (Recurrent, lambda n: (doubles(n, 4, 6),)),
    "spread": (Spread, lambda n: (doubles(n, 6), doubles(n, 1))),
}


def network(name, examples=7):
    """(groups traced on two examples, inputs, targets) in float64."""
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        outputs = model(*inputs(examples))
    return all_groups(model, inputs(2)), inputs(examples), doubles(*outputs.shape)


def close(found, expected):
    assert list(found) == list(expected)
    for name, changes in expected.items():
        torch.testing.assert_close(found[name], changes, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("budget", [1, 20_000, 2**28])
def test_equals_the_naive_loop_in_chunks_of_all_sizes(name, budget):
    coupled, inputs, targets = network(name)
    found = oracle_changes(coupled, inputs, targets, squared_error, budget_bytes=budget)
    close(found, naive_changes(coupled, inputs, targets, squared_error))


def test_class_numbers_and_any_error():
    coupled = all_groups(small_resnet().double(), doubles(2, 3, 8, 8))
    inputs, targets = images(9)
    for error in (cross_entropy, lambda o, t: torch.nn.functional.cross_entropy(o, t, label_smoothing=0.1)):
        found = oracle_changes(coupled, inputs.double(), targets, error)
        close(found, naive_changes(coupled, inputs.double(), targets, error))


@pytest.mark.parametrize("name", ["residual", "attention"])
def test_units_that_are_off_stay_off(name):
    coupled, inputs, targets = network(name)
    kept = {group.name: torch.arange(group.units) % 3 != 1 for group in coupled.groups[:3]}
    found = oracle_changes(coupled, inputs, targets, squared_error, kept=kept)
    derived = gain_derivatives(coupled, inputs, targets, squared_error, kept=kept)
    unit_masks(coupled.model, coupled.traced.plan, kept).apply(coupled.model)
    expected = naive_changes(coupled, inputs, targets, squared_error)
    again = gain_derivatives(coupled, inputs, targets, squared_error)
    for group, changes in found.items():
        on = kept.get(group, torch.ones(len(changes), dtype=torch.bool))
        assert changes.isnan().tolist() == derived[group].first.isnan().tolist() == (~on).tolist()
        torch.testing.assert_close(changes[on], expected[group][on], rtol=1e-10, atol=1e-10)
        for one, other in (
            (derived[group].first, again[group].first),
            (derived[group].second, again[group].second),
        ):
            torch.testing.assert_close(one[on], other[on], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("net", ["2 hidden", "softmax", "conv", "odd", "functions"])
def test_a_chain_is_worth_the_same_in_both_forms(net):
    model, inputs, targets = made(net)
    if net == "functions":
        model = nn.Sequential(model.a, nn.Tanh(), model.b, nn.ReLU(), model.c)
    chain, coupled = chain_of(model), all_groups(model, inputs[:2])
    close(
        oracle_changes(coupled, inputs, targets, "cross_entropy"),
        oracle_changes(chain, inputs, targets, "cross_entropy"),
    )
    both = [gain_derivatives(each, inputs, targets, "cross_entropy") for each in (coupled, chain)]
    for part in ("first", "second", "first_order", "second_order"):
        close(*({name: getattr(each, part) for name, each in found.items()} for found in both))
    batches = list(zip(inputs.split(11), targets.split(11), strict=True))
    close(relevance(coupled, batches), relevance(chain, batches))


def test_what_an_operator_reads_by_itself_counts_once():
    """Of a product of two values of a unit one is multiplied: the error is a square of the gain, no more."""
    coupled, inputs, targets = network("by itself")
    found = gain_derivatives(coupled, inputs, targets, squared_error)["a"]
    changes = oracle_changes(coupled, inputs, targets, squared_error)["a"]
    torch.testing.assert_close(found.second_order, changes, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:TF32")
def test_derivatives_through_a_recurrent_layer():
    coupled, (inputs,), targets = network("recurrent")
    found = gain_derivatives(coupled, (inputs,), targets, squared_error)["first"]
    weight, step = coupled.model.into.weight, 1e-3
    for unit in range(5):
        errors = []
        for gain in (1 - step, 1, 1 + step):
            scaled = weight.detach().clone()
            scaled[:, unit] *= gain
            outputs = torch.func.functional_call(coupled.model, {"into.weight": scaled}, inputs)
            errors.append(squared_error(outputs, targets).item())
        assert found.first[unit] == pytest.approx((errors[2] - errors[0]) / (2 * step), rel=1e-4, abs=1e-7)
        curved = (errors[2] - 2 * errors[1] + errors[0]) / step**2
        assert found.second[unit] == pytest.approx(curved, rel=1e-3, abs=1e-7)


def test_elimination_removes_the_least_and_goes_on_from_there():
    coupled, inputs, targets = network("residual")
    course = eliminate(coupled, inputs, targets, squared_error, count=3)
    kept = {group.name: torch.ones(group.units, dtype=torch.bool) for group in coupled.groups}
    for (name, unit), predicted in zip(course.order, course.predicted.tolist(), strict=True):
        changes = naive_changes(coupled, inputs, targets, squared_error)
        least = min(float(each[kept[group]].min()) for group, each in changes.items())
        assert predicted == pytest.approx(least, abs=1e-10)
        kept[name][unit] = False
        unit_masks(coupled.model, coupled.traced.plan, {name: kept[name]}).apply(coupled.model)
    with torch.no_grad():
        left = float(squared_error(coupled.model(*inputs), targets))
    assert float(course.errors[-1]) == pytest.approx(left, abs=1e-10)


def test_the_model_is_left_as_it_was():
    coupled, inputs, targets = network("residual")
    model = coupled.model.train()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    found = gain_derivatives(coupled, inputs, targets, squared_error)
    oracle_changes(coupled, inputs, targets, squared_error)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert not any(each.first.requires_grad or each.second.requires_grad for each in found.values())


def test_what_cannot_be_accepted():
    coupled, inputs, targets = network("spread")
    with pytest.raises(InputError, match="same first dimension"):
        oracle_changes(coupled, (inputs[0], inputs[1][:3]), targets, squared_error)
    with pytest.raises(InputError, match="no group is named 'x'"):
        oracle_changes(coupled, inputs, targets, squared_error, groups=["x"])
    with pytest.raises(InputError, match="cannot be taken of these outputs"):
        oracle_changes(coupled, inputs, targets[:, :2], squared_error)
    with pytest.raises(InputError, match="path of linear layers; where branches of a unit meet again"):
        diagonal_recursion(coupled, inputs[0], targets, squared_error)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        y = torch.tanh(self.a(x))
        return self.b(y), y.sum()


def test_a_network_of_several_outputs():
    coupled = all_groups(Pair().double(), doubles(2, 6))
    with pytest.raises(InputError, match="wrap the network in a module that gives one"):
        oracle_changes(coupled, doubles(4, 6), doubles(4, 4), squared_error)


def test_no_more_variants_at_once_than_there_is_memory_for(monkeypatch):
    """The largest value of one variant is a map of the first stage: 7 x 4 x 8 x 8 numbers, 14 KB."""
    coupled, inputs, targets = network("residual")
    together, vmap = [], torch.func.vmap

    def counted(run):
        return lambda gains: together.append(len(gains)) or vmap(run)(gains)

    monkeypatch.setattr(torch.func, "vmap", counted)
    most = {}
    for budget in (1, 20_000, 2**24):
        together.clear()
        oracle_changes(coupled, inputs, targets, squared_error, groups=["conv1"], budget_bytes=budget)
        most[budget] = max(together)
        examples = 7 * coupled.group("conv1").units // sum(together)  # of a chunk
        assert max(together) == 1 or max(together) * examples * 4 * 64 * 8 <= budget
    assert most[1] == 1
    assert most[2**24] == coupled.group("conv1").units


def test_a_network_is_captured_once_for_each_size_of_a_batch(monkeypatch):
    coupled, inputs, targets = network("residual", examples=23)
    batches = list(zip(inputs[0].split(5), targets.split(5), strict=True))
    calls = []
    monkeypatch.setattr(
        graph_runner,
        "captured_in",
        lambda *given, **settings: calls.append(1) or captured_in(*given, **settings),
    )
    first = relevance(coupled, batches)
    assert len(calls) == 2  # of 5 and of 3
    close(relevance(copy.deepcopy(coupled), batches), first)
    with torch.no_grad():
        coupled.model.fc.weight.mul_(2)  # what is captured holds no weights
    again = all_groups(copy.deepcopy(coupled.model), inputs[0][:2])
    close(relevance(coupled, batches), relevance(again, batches))
