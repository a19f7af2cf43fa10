"""Group lasso against scipy, autograd and finite differences, over groups that are listed by hand."""

import copy
import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam

from prunekit import Recipe, prune
from prunekit.errors import InputError, ModelError
from prunekit.parts.regularize import GroupLasso
from prunekit.seeds import derive
from prunekit.training import Training, train
from small_nets import blobs, convnet, copied, mlp, same

RATE, STRENGTH = 0.1, 1.3
DECIDES = {"name": "allocation_decides"}
KINDS = ["units", "channels", "filter_shapes"]
FORMS = ["proximal", "subgradient"]


def small(dtype=torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 2),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 4),
        nn.ReLU(),
        nn.Linear(4, 2),
    ).to(dtype)
    with torch.no_grad():
        net[1].weight.uniform_(0.1, 1)
        net[1].bias.uniform_(-0.1, 0.1)
        for small_one in (net[0].weight[:, 0, 0, 0], net[4].weight[:, 3], net[4].weight[2], net[4].bias[2:3]):
            small_one *= 0.01
    return net


def entries(kind: str) -> list[list[tuple]]:
    """Each group as (parameter, index) pairs."""
    groups = []
    if kind == "units":
        for unit in range(3):
            own = [("0.weight", (unit, *rest)) for rest in itertools.product(range(2), range(2), range(2))]
            groups.append([*own, ("0.bias", (unit,)), ("1.weight", (unit,)), ("1.bias", (unit,))])
        for unit in range(4):
            groups.append([*(("4.weight", (unit, each)) for each in range(27)), ("4.bias", (unit,))])
    elif kind == "filter_shapes":
        for place in itertools.product(range(2), range(2), range(2)):
            groups.append([("0.weight", (filter_, *place)) for filter_ in range(3)])
    else:
        for channel in range(2):
            of_channel = itertools.product(range(3), range(2), range(2))
            groups.append([("0.weight", (f, channel, x, y)) for f, x, y in of_channel])
        for name, outputs, inputs in (("4.weight", 4, 27), ("6.weight", 2, 4)):
            groups += [[(name, (row, each)) for row in range(outputs)] for each in range(inputs)]
    return groups


def penalty(net: nn.Module, kind: str, root: bool) -> torch.Tensor:
    total = 0.0
    for group in entries(kind):
        values = torch.stack([net.get_parameter(name)[index] for name, index in group])
        total = total + STRENGTH * (len(group) ** 0.5 if root else 1.0) * values.square().sum().sqrt()
    return total


def without_gradient(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_proximal_step_minimises_what_it_stands_for(kind, root):
    net = small()
    before = copied(net)
    optimizer = SGD(net.parameters(), RATE)
    GroupLasso(strength=STRENGTH, groups=kind, root_of_size=root).attach(net, optimizer, None)
    without_gradient(net)
    optimizer.step()
    zeros, inside = 0, set()
    for group in entries(kind):
        inside |= set(group)
        was = np.array([float(before[name][index]) for name, index in group])
        now = np.array([float(net.get_parameter(name).detach()[index]) for name, index in group])
        weight = RATE * STRENGTH * (len(group) ** 0.5 if root else 1.0)

        def objective(values, was=was, weight=weight):
            return 0.5 * np.sum((values - was) ** 2) + weight * np.linalg.norm(values)

        # scipy walks from the old values; at the kink at 0 it cannot, so 0 is a candidate of its own
        found = minimize(objective, was, method="BFGS", options={"gtol": 1e-9}).x
        best = min((found, np.zeros_like(was)), key=objective)
        np.testing.assert_allclose(now, best, atol=1e-5)
        zeros += not now.any()
    assert 0 < zeros < len(entries(kind))
    for name, parameter in net.named_parameters():
        for index in np.ndindex(*parameter.shape):
            assert (name, index) in inside or parameter[index] == before[name][index]


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_subgradient_is_the_slope_of_the_penalty(kind, root):
    net = small()
    optimizer = SGD(net.parameters(), RATE)
    part = GroupLasso(strength=STRENGTH, groups=kind, form="subgradient", root_of_size=root, threshold=0)
    part.attach(net, optimizer, None)
    before = copied(net)
    without_gradient(net)
    optimizer.step()
    ours = {name: (before[name] - each.detach()) / RATE for name, each in net.named_parameters()}
    other = small()
    other.load_state_dict(before)
    penalty(other, kind, root).backward()
    for name, parameter in other.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(ours[name], wanted, atol=1e-12, rtol=1e-9)
    for name, index in entries(kind)[0][:3]:
        sides = []
        for change in (1e-6, -1e-6):
            moved = copy.deepcopy(other)
            with torch.no_grad():
                moved.get_parameter(name)[index] += change
                sides.append(float(penalty(moved, kind, root)))
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(float(ours[name][index]), rel=1e-4, abs=1e-8)


def test_a_group_of_zeros_has_no_subgradient_and_small_weights_of_groups_are_cut():
    net = small()
    with torch.no_grad():
        net[0].weight[:, 0, 0, 0] = 0.0
        net[0].weight[1, 1, 1, 1] = 3e-5
        net[4].weight[0, 0] = 3e-5
    optimizer = SGD(net.parameters(), 1e-9)
    GroupLasso(strength=1.0, groups="filter_shapes", form="subgradient").attach(net, optimizer, None)
    without_gradient(net)
    optimizer.step()
    assert not net[0].weight[:, 0, 0, 0].any()
    assert net[0].weight[1, 1, 1, 1] == 0
    assert net[4].weight[0, 0] != 0  # of no group


def test_the_step_follows_the_rate_of_the_optimizer():
    net = mlp(3, 2, dtype=torch.float64)
    before = net[0].weight.detach().clone()
    optimizer = SGD(net.parameters(), 1.0)
    GroupLasso(strength=0.1, groups="channels").attach(net, optimizer, None)
    optimizer.param_groups[0]["lr"] = 0.5
    without_gradient(net)
    optimizer.step()
    torch.testing.assert_close(
        before.norm(dim=0) - net[0].weight.norm(dim=0), torch.full((3,), 0.05).double()
    )


def test_each_layer_can_have_a_strength_of_its_own():
    net = small()
    before = copied(net)
    optimizer = SGD(net.parameters(), RATE)
    strengths = {"0": 0.4, "4": 2.0}
    named = [{"name": "group_lasso", "strength": each, "targets": [at]} for at, each in strengths.items()]
    for regularizer in Training.parse({"regularize": named}).regularize:
        regularizer.attach(net, optimizer)
    without_gradient(net)
    optimizer.step()
    for group in entries("units"):
        strength = strengths[group[0][0].partition(".")[0]]
        old, new = (
            np.array([float(values[name][index]) for name, index in group])
            for values in (before, copied(net))
        )
        norm = np.linalg.norm(old)
        np.testing.assert_allclose(new, old * max(0.0, 1 - RATE * strength / norm), atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_frozen_weights_stay(form):
    net = mlp(4, 5, 3)
    net[0].weight.requires_grad_(False)
    before = copied(net)
    train(net, blobs(20, 4), Training(iterations=3, regularize=(GroupLasso(strength=1.0, form=form),)))
    assert torch.equal(net[0].weight, before["0.weight"])
    assert not torch.equal(net[2].weight, before["2.weight"])


def test_groups_of_frozen_weights_alone_are_refused():
    net = mlp(4, 5, 3)
    for each in (net[0].weight, net[0].bias):
        each.requires_grad_(False)
    with pytest.raises(InputError, match="group_lasso: all weights of its groups are frozen"):
        GroupLasso(strength=1.0).attach(net, SGD(net.parameters(), 0.1))


@pytest.mark.parametrize("form", FORMS)
def test_masked_groups_stay_zero_under_momentum(form):
    net, data = mlp(10, 12, 3), blobs(64)
    half = Recipe.parse({"granularity": "unit", "schedule": {"name": "one_shot", "sparsity": 0.5}})
    masks = prune(net, half, data).masks
    penalised = {"iterations": 30, "optimizer": "sgd", "lr": 0.05, "batch_size": 16}
    penalised["regularize"] = [{"name": "group_lasso", "strength": 0.01, "form": form}]
    train(net, data, Training.parse(penalised), masks=masks)
    for name, mask in masks.items():
        assert not net.get_parameter(name)[~mask].any()
        assert net.get_parameter(name)[mask].any()


LEARN = {
    "warm_up": {
        "iterations": 150,
        "optimizer": "sgd",
        "lr": 0.05,
        "batch_size": 16,
        "regularize": [{"name": "group_lasso", "strength": 0.3}],
    },
    "granularity": "unit",
    "allocation": "zeros",
    "schedule": DECIDES,
    "retrain": {"name": "fine_tune", "training": {"iterations": 20, "batch_size": 16}},
}


def test_units_learned_to_zero_are_removed_stay_removed_and_shrink():
    data = blobs(96)
    net = mlp(10, 20, 3)
    pruned = prune(net, Recipe.parse(LEARN), data)
    left = int(pruned.kept["0"].sum())
    assert 0 < left < 20
    for name, mask in pruned.masks.items():
        assert not net.get_parameter(name)[~mask].any()
    wanted = net(data[0])
    shrunk = pruned.shrink(data[0][:2])
    assert shrunk.model[0].out_features == left
    torch.testing.assert_close(shrunk.model(data[0]), wanted)
    assert float((wanted.argmax(1) == data[1]).double().mean()) > 0.9


def test_removing_what_became_zero_changes_nothing_the_network_computes():
    data = blobs(96)
    chosen = {key: value for key, value in LEARN.items() if key != "retrain"}
    net = mlp(10, 20, 3)
    by_hand = copy.deepcopy(net)
    pruned = prune(net, Recipe.parse(chosen), data)
    warm_up = Training.parse(chosen["warm_up"])
    train(by_hand, data, warm_up, seed=derive(0, "training", "warm_up", "warm_up"))
    assert 0 < int(pruned.kept["0"].sum()) < 20
    torch.testing.assert_close(net(data[0]), by_hand(data[0]))


def test_it_acts_in_a_loop_of_ones_own_until_its_handles_are_removed():
    net, (inputs, targets) = mlp(10, 20, 3), blobs(96)
    optimizer = Adam(net.parameters(), 0.01)
    handles = GroupLasso(strength=0.5).attach(net, optimizer, None)
    for _ in range(150):
        optimizer.zero_grad()
        cross_entropy(net(inputs), targets).backward()
        optimizer.step()
    dead = net[0].weight.abs().sum(1) == 0
    assert 0 < int(dead.sum()) < 20
    assert not net[0].bias[dead].any()
    for handle in handles:
        handle.remove()
    before = copied(net)
    optimizer.zero_grad(set_to_none=False)
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    assert same(copied(net), before)


@pytest.mark.parametrize(
    ("settings", "net", "error", "said"),
    [
        ({"groups": "filter_shapes"}, mlp(4, 5, 3), ModelError, "has no convolution"),
        (
            {"groups": "filter_shapes", "targets": ["0"]},
            mlp(4, 3),
            InputError,
            "0.weight of a Linear has no filter shapes",
        ),
        ({"groups": "filter_shapes"}, convnet(), InputError, "filters of 3.weight read different channels"),
        ({"groups": "channels"}, convnet(), InputError, "filters of 3.weight read different channels"),
        ({"groups": "channels", "targets": ["nothing"]}, mlp(4, 3), InputError, "nothing"),
        ({"groups": "heads"}, mlp(4, 5, 3), ModelError, "kinds that can be pruned are: neurons"),
    ],
)
def test_groups_that_are_not_there_are_refused_before_anything_is_changed(settings, net, error, said):
    before = copied(net)
    part = GroupLasso(strength=0.1, **settings)
    data = (torch.randn(4, *((4, 6, 6) if isinstance(net[0], nn.Conv2d) else (4,))), torch.zeros(4).long())
    with pytest.raises(error, match=said):
        train(net, data, Training(iterations=1, regularize=(part,)))
    assert same(copied(net), before)


class Words(nn.Module):
    """It looks at the values of its inputs, whole numbers, so that those that are made up fail late."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words, self.norm = nn.Embedding(9, 6), nn.LayerNorm(6)
        self.up, self.down, self.out = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        if not torch.compiler.is_exporting() and bool((x < 0).any()):
            raise ValueError("words are numbered from 0")
        x = self.norm(self.words(x))
        return self.out((x + self.down(self.up(x).relu())).mean(1))


@pytest.mark.parametrize("groups", ["units", "blocks"])
def test_groups_are_looked_for_on_the_examples_of_the_training(groups):
    """As BERT's are, which looks at the values of its inputs before it embeds them."""
    data = torch.randint(9, (16, 5), generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    training = {
        "iterations": 40,
        "lr": 0.05,
        "regularize": [{"name": "group_lasso", "strength": 20.0, "groups": groups}],
    }
    granularity = "block" if groups == "blocks" else "unit"
    allocation = {"name": "zeros", "floor": 0}
    chosen = {"granularity": granularity, "allocation": allocation, "schedule": DECIDES, "warm_up": training}
    assert prune(Words(), Recipe.parse(chosen), data).kept.sparsity > 0


@pytest.mark.parametrize(
    "setting", [{"strength": -1.0}, {"strength": 0.0}, {"threshold": -1.0}, {"groups": "rows"}]
)
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(InputError, match=next(iter(setting))):
        GroupLasso.parse({"strength": 1.0, **setting})
