"""OBD and OBS on whole networks, against plain loops that invert anew after every removal."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.batches import TensorBatches
from prunekit.errors import DataError, InputError, ModelError
from prunekit.losses import squared_error
from prunekit.pruning import Session, prune
from prunekit.statistics import GaussNewton, GaussNewtonDiagonal, StatContext, collect
from prunekit.task import Task
from small_nets import blobs, copied, mlp, recipe, same, zeros

DAMP = 1e-3
OBS = {"name": "obs", "damp": DAMP}
NAMES = ["0.weight", "2.weight"]


def net():
    model = mlp(4, 3, 3, dtype=torch.float64)
    model[1] = nn.Tanh()
    return model


def found(need, model, data):
    batches = TensorBatches(*data).sample(10_000, 64, seed=0)
    return collect(StatContext(model, NAMES), batches, [need], task=Task(nn.functional.cross_entropy))[need]


def surgeon(hessian, values, removable, count):
    """Removals one at a time: (numbers of the removed in order, values at the end)."""
    values, left, gone = values.copy(), list(range(len(values))), []
    while len(gone) < count:
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        costs = [
            values[k] ** 2 / (2 * inverse[place, place]) if removable[k] else np.inf
            for place, k in enumerate(left)
        ]
        least = int(np.argmin(costs))
        gone.append(left[least])
        values[left] -= values[left[least]] / inverse[least, least] * inverse[:, least]
        values[left[least]] = 0
        del left[least]
    return gone, values


def problem(model, data):
    rows = found(GaussNewton(), model, data)
    H = torch.cat(list(rows.values())).numpy()
    H = H + DAMP * H.diagonal().mean() * np.eye(len(H))
    values = np.concatenate([model.get_parameter(name).detach().flatten().numpy() for name in rows])
    removable = np.concatenate([np.full(len(each), name in NAMES) for name, each in rows.items()])
    return H, values, removable, list(rows)


def state(model, names):
    return np.concatenate([model.get_parameter(name).detach().flatten().numpy() for name in names])


def test_obs_removes_in_the_order_of_a_plain_loop_and_ends_at_its_values():
    data = blobs(80, 4, dtype=torch.float64)
    model = net()
    H, values, removable, names = problem(model, data)
    gone, expected = surgeon(H, values, removable, 8)
    schedule = {"name": "fixed_count", "every": 1, "sparsity": 8 / 21}
    curve = Session(
        model, recipe(score=OBS, repair=OBS, rank="once", statistics="once", schedule=schedule), data=data
    )
    order, zero = [], set()
    for _ in curve.run():
        now = set(np.flatnonzero((state(model, names) == 0) & removable)) - zero
        order += sorted(now)
        zero |= now
    # losses are not monotone: what has become cheap goes with the one before it
    assert set(order) == set(gone)
    assert np.allclose(state(model, names), expected, atol=1e-9)


def test_a_removal_at_a_time_renewed():
    """Each removal from the network as it is then: the Hessian too is taken anew."""
    data = blobs(80, 4, dtype=torch.float64)
    model, other = net(), net()
    for _ in range(3):
        H, values, removable, names = problem(other, data)
        removable &= values != 0
        left = np.flatnonzero((values != 0) | ~np.isin(np.arange(len(values)), np.flatnonzero(removable)))
        inner = np.ix_(left[values[left] != 0], left[values[left] != 0])
        alive = left[values[left] != 0]
        _, new = surgeon(H[inner], values[alive], removable[alive], 1)
        values[alive] = new
        parts = np.split(values, np.cumsum([other.get_parameter(name).numel() for name in names])[:-1])
        with torch.no_grad():
            for name, part in zip(names, parts, strict=True):
                parameter = other.get_parameter(name)
                parameter.copy_(torch.from_numpy(part).view_as(parameter))
    prune(
        model,
        recipe(score=OBS, repair=OBS, schedule={"name": "fixed_count", "every": 1, "sparsity": 3 / 21}),
        data,
    )
    for key, value in copied(other).items():
        assert torch.allclose(copied(model)[key], value, atol=1e-9)


def test_obd_is_half_of_the_curvature_times_the_square():
    data, model = blobs(60, 4, dtype=torch.float64), net()
    diagonal = found(GaussNewtonDiagonal(), model, data)
    saliency = {name: diagonal[name] * model.get_parameter(name).detach() ** 2 / 2 for name in NAMES}
    lowest = torch.cat([each.flatten() for each in saliency.values()]).sort().values[9]
    masks = prune(model, recipe(score="obd", schedule={"name": "one_shot", "sparsity": 10 / 21}), data).masks
    assert all(torch.equal(masks[name], saliency[name] > lowest) for name in NAMES)


def test_obd_predicts_what_a_removal_costs_in_a_linear_network_at_its_minimum():
    x = torch.randn(200, 5, dtype=torch.float64)
    model = mlp(5, 2, dtype=torch.float64)
    targets = model(x).detach()  # the loss is at its minimum, 0, and quadratic
    need = GaussNewtonDiagonal()
    data = TensorBatches(x, targets).sample(1000, 64, 0)
    diagonal = collect(StatContext(model, ["0.weight"]), data, [need], task=Task(squared_error))[need][
        "0.weight"
    ]
    with torch.no_grad():
        for place in [(0, 1), (1, 4)]:
            weight = float(model[0].weight[place])
            model[0].weight[place] = 0.0
            rise = float(squared_error(model(x), targets))
            model[0].weight[place] = weight
            assert rise == pytest.approx(float(diagonal[place]) * weight**2 / 2, rel=1e-9)


@pytest.mark.parametrize("part", ["score", "repair"])
def test_large_networks_are_refused_before_anything_is_measured(part):
    with pytest.raises(InputError, match=r"26,000 weights to choose from, .* at most 5,000"):
        recipe(**{part: "obs"}).plan(mlp(100, 200, 30))
    with pytest.raises(ModelError, match="ConvTranspose1d"):
        recipe(**{part: "obs"}).plan(nn.Sequential(nn.ConvTranspose1d(2, 2, 3)))
    with pytest.raises(ModelError, match="ConvTranspose1d"):
        recipe(score="obd").plan(nn.Sequential(nn.ConvTranspose1d(2, 2, 3)))


def test_units_by_their_obd():
    model = mlp(6, 8, 3)
    prune(model, recipe(score="obd", granularity="unit"), blobs(40, 6))
    assert zeros(model, "0.weight") == 4 * 6


def test_a_singular_hessian_of_a_whole_network_names_weights():
    model, data = net(), blobs(6, 4, 3, dtype=torch.float64)
    chosen = recipe(score={"name": "obs", "damp": 0})
    with pytest.raises(DataError, match=r"the Hessian of \d+ weights is singular: some weights are combin"):
        prune(model, chosen, data)


@pytest.mark.parametrize("score", ["obd", "obs", "block_fisher", "grasp", "gradient"])
def test_one_number_for_an_example_may_be_a_vector_or_a_column(score) -> None:
    """The same regression, with outputs and targets (n,) and (n, 1)."""
    model = mlp(5, 4, 1)
    inputs, _ = blobs(40, 5, 2)
    targets = inputs[:, :1] * 2
    column = prune(copy.deepcopy(model), recipe(score=score), (inputs, targets))
    vector = prune(
        nn.Sequential(*copy.deepcopy(model), nn.Flatten(0)), recipe(score=score), (inputs, targets[:, 0])
    )
    assert same(dict(column.masks), dict(vector.masks))


@pytest.mark.parametrize("score", ["obd", "block_fisher", "grasp"])
def test_targets_that_do_not_fit_are_refused_before_anything_is_measured(score) -> None:
    inputs, _ = blobs(40, 5, 2)
    with pytest.raises(InputError, match=r"^the data: .* differ in shape"):
        prune(mlp(5, 4, 1), recipe(score=score), (inputs, inputs[:, :2]))
