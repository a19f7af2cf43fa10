"""Layer-wise OBS as recipes, against plain loops in NumPy on the layers' own inputs."""

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import DataError, InputError, ModelError
from prunekit.masks import Masks
from prunekit.pruning import Session, prune
from small_nets import blobs, convnet, copied, images, mlp, recipe, same, zeros
from unfolding import design

DAMP = 0.01
LSQ = {"name": "masked_least_squares", "damp": DAMP}
OBS = {"name": "layer_obs", "damp": DAMP, "relative_to": "nothing", "precision": "float64"}


def hessian(rows, *, bias):
    """(H, live) in NumPy."""
    rows = rows - rows.mean(0) if bias else rows
    found = rows.T @ rows / len(rows)
    live = found.diagonal() > 1e-12 * found.diagonal().mean()
    return found + DAMP * found.diagonal()[live].mean() * np.diag(live), live


def naive_obs(hessian, live, weights):
    """Every removal of every row, its loss, with the inverse taken anew after each: (rows, columns)."""
    removed_at = np.zeros(weights.shape)
    for number, row in enumerate(weights.astype(float)):
        row, left, worst = row.copy(), [k for k in range(len(row)) if live[k]], 0.0
        while left:
            inverse = np.linalg.inv(hessian[np.ix_(left, left)])
            costs = row[left] ** 2 / (2 * inverse.diagonal())
            least = int(costs.argmin())
            worst = max(worst, costs[least])
            removed_at[number, left[least]] = worst
            row[left] -= row[left[least]] / inverse[least, least] * inverse[:, least]
            del left[least]
    return removed_at


def refitted(rows, weights, bias, mask):
    """The survivors and the bias by least squares on the design matrix, damping as rows of its own."""
    H, live = hessian(rows, bias=bias is not None)
    new = weights * mask
    for number, kept in enumerate(mask):
        on = np.flatnonzero(kept & live)
        new[number, on] = np.linalg.solve(H[np.ix_(on, on)], H[on][:, live] @ weights[number, live])
    return new, None if bias is None else bias + (weights - new) @ rows.mean(0)


def layer_of(model, name):
    return model.get_submodule(name.rpartition(".")[0])


def reached(model, data, name):
    """(groups, rows, columns) of NumPy: the inputs of a layer, one number at a time."""
    seen = []
    layer = layer_of(model, name)
    hook = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().double()))
    with torch.no_grad():
        model.eval()(data[0])
    hook.remove()
    return design(layer, seen[0])


@pytest.mark.parametrize("bias", [True, False])
def test_one_layer_is_pruned_as_by_a_naive_loop(bias):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(9, 5, bias=bias)).double()
    data = blobs(60, 9, classes=5, dtype=torch.float64)
    data[0][:, 4] = 0.0
    weights = model[0].weight.detach().numpy().copy()
    old_bias = model[0].bias.detach().numpy().copy() if bias else None
    rows = data[0].numpy()
    H, live = hessian(rows, bias=bias)
    order = naive_obs(H, live, weights)
    pruned = prune(model, recipe(score=OBS, repair=LSQ, schedule={"name": "one_shot", "sparsity": 0.6}), data)
    mask = pruned.masks["0.weight"].numpy()
    expected = order > np.sort(order.ravel())[26]  # 27 of 45
    assert np.array_equal(mask, expected)
    new, new_bias = refitted(rows, weights, old_bias, mask)
    assert np.allclose(model[0].weight.detach().numpy(), new, atol=1e-9)
    if bias:
        assert np.allclose(model[0].bias.detach().numpy(), new_bias, atol=1e-9)


def test_a_network_with_groups_and_several_layers():
    model, data = convnet().double(), (images()[0].double(), images()[1])
    names = ["0.weight", "3.weight", "7.weight"]
    before = copied(model)
    rows = {name: reached(model, data, name) for name in names}
    pruned = prune(model, recipe(score=OBS, repair=LSQ, schedule={"name": "one_shot", "sparsity": 0.5}), data)
    for name in names:
        layer = layer_of(model, name)
        groups = len(rows[name])
        shape = (groups, -1, rows[name].shape[2])
        weights, masks = before[name].reshape(shape).numpy(), pruned.masks[name].reshape(shape).numpy()
        bias = before[name.replace("weight", "bias")].reshape(groups, -1).numpy()
        for group in range(groups):
            new, new_bias = refitted(rows[name][group], weights[group], bias[group], masks[group])
            assert np.allclose(layer.weight.detach().reshape(shape)[group].numpy(), new, atol=1e-8)
            assert np.allclose(layer.bias.detach().reshape(groups, -1)[group].numpy(), new_bias, atol=1e-8)


def test_layers_are_compared_by_their_error_over_their_variance():
    model, data = mlp(6, 5, 3, dtype=torch.float64), blobs(60, 6, dtype=torch.float64)
    relative = {**OBS, "relative_to": "output_variance"}
    scores = {}
    for key, score in (("nothing", OBS), ("variance", relative)):
        session = Session(mlp(6, 5, 3, dtype=torch.float64), recipe(score=score, rank="once"), data=data)
        session.advance()
        scores[key] = session.state_dict()["ranking"]
    for name in ("0.weight", "2.weight"):
        weights = model.get_parameter(name).detach().numpy()
        outputs = reached(model, data, name)[0] @ weights.T
        variance = outputs.var(0).sum()
        assert np.allclose(scores["variance"][name], scores["nothing"][name] / variance, rtol=1e-9)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_one_elimination_gives_the_whole_curve(precision):
    """With statistics taken once, nested refits are refits of the dense weights at each cut."""
    data = blobs(90, 10, dtype=torch.float64)
    score = {**OBS, "precision": precision}
    cuts = (0.3, 0.5, 0.7, 0.9)
    settings = {"score": score, "repair": LSQ, "rank": "once"}
    curve = Session(
        mlp(10, 12, 3, dtype=torch.float64),
        recipe(**settings, schedule={"name": "explicit", "values": cuts}, statistics="once"),
        data=data,
    )
    for cut in cuts:
        curve.advance()
        alone = mlp(10, 12, 3, dtype=torch.float64)
        prune(alone, recipe(**settings, schedule={"name": "one_shot", "sparsity": cut}), data)
        found, expected = copied(curve.model), copied(alone)
        assert all(torch.allclose(found[key], expected[key], atol=1e-9) for key in found)


def test_a_curve_is_resumed_to_the_same_result():
    data = blobs(90, 10)
    chosen = recipe(
        score="layer_obs", repair=LSQ, rank="once", statistics="once",
        schedule={"name": "explicit", "values": (0.4, 0.8)},
    )  # fmt: skip
    whole = mlp(10, 12, 3)
    prune(whole, chosen, data)
    first = Session(mlp(10, 12, 3), chosen, data=data)
    first.advance()
    model = mlp(10, 12, 3)
    model.load_state_dict(first.model.state_dict())
    second = Session(model, chosen, data=data)
    second.load_state_dict(first.state_dict())
    second.advance()
    assert same(copied(whole), copied(model))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"statistics": "once"}, "set 'rank' to 'once' too"),
        (
            {"statistics": "once", "rank": "once", "order": "forward"},
            "the order 'forward' is there",
        ),
        ({"statistics": "once", "rank": "once", "retrain": "fine_tune"}, "'fine_tune' changes what layers"),
        (
            {"repair": "masked_least_squares", "granularity": "unit"},
            "the granularity 'unit' removes whole units: use the granularity 'weight'",
        ),
        ({"schedule": {"name": "fixed_count", "every": 0, "sparsity": 0.5}}, "every = 0"),
        ({"score": {"name": "layer_obs", "damp": -1}}, "damp = -1"),
    ],
)
def test_settings_that_do_not_fit(settings, match):
    with pytest.raises(InputError, match=match):
        recipe(**settings)


def test_the_shared_form_removes_what_its_saliency_says_and_updates_by_its_inverse():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(7, 4)).double()
    data = blobs(50, 7, classes=4, dtype=torch.float64)
    weights, bias = (model[0].get_parameter(key).detach().numpy().copy() for key in ("weight", "bias"))
    H, _ = hessian(data[0].numpy(), bias=True)
    inverse = np.linalg.inv(H)
    saliency = weights**2 / (2 * inverse.diagonal())
    removed = saliency <= np.sort(saliency.ravel())[6]
    shared = {**OBS, "form": "shared"}
    schedule = {"name": "one_shot", "sparsity": 0.25}
    prune(model, recipe(score=shared, repair={"name": "obs_update", "damp": DAMP}, schedule=schedule), data)
    new = weights - np.where(removed, weights / inverse.diagonal(), 0) @ inverse
    new = new * ~removed
    assert np.allclose(model[0].weight.detach().numpy(), new)
    mean = data[0].numpy().mean(0)
    assert np.allclose(model[0].bias.detach().numpy(), bias + (weights - new) @ mean)


def error_of(model, dense, data):
    with torch.no_grad():
        return float((model(data[0]) - dense(data[0])).square().sum(1).mean())


def test_exact_is_better_than_shared_is_better_than_magnitude_and_steps_help():
    data = blobs(300, 20, classes=4, dtype=torch.float64)
    schedule = {"name": "one_shot", "sparsity": 0.7}
    shared = {**OBS, "form": "shared"}
    update = {"name": "obs_update", "damp": DAMP}
    errors = {}
    for key, settings in {
        "magnitude": {"schedule": schedule},
        "at once": {"score": shared, "repair": update, "schedule": schedule},
        "renewed": {
            "score": shared,
            "repair": update,
            "schedule": {"name": "fixed_count", "every": 5, "sparsity": 0.7},
        },
        "exact": {"score": OBS, "repair": LSQ, "schedule": schedule},
    }.items():  # fmt: skip
        torch.manual_seed(3)
        model, dense = (nn.Sequential(nn.Linear(20, 8)).double() for _ in range(2))
        dense.load_state_dict(model.state_dict())
        prune(model, recipe(**settings), data)
        errors[key] = error_of(model, dense, data)
    assert errors["exact"] < errors["renewed"] < errors["at once"] < errors["magnitude"]


def test_renewed_after_each_so_many_removals():
    model = mlp(10, 16, 3)
    chosen = recipe(
        score="layer_obs", repair=LSQ, schedule={"name": "fixed_count", "every": 50, "sparsity": 0.8}
    )
    history = prune(model, chosen, blobs(64, 10)).history
    assert [record.total - record.kept for record in history] == [50, 100, 150, round(0.8 * 208)]


def test_n_m_patterns_with_the_best_order_within_them():
    model = nn.Sequential(nn.Conv2d(8, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    data = torch.randn(40, 8, 6, 6, dtype=torch.float64), torch.randint(3, (40,))
    dense = nn.Sequential(*model).state_dict()
    dense = {key: value.clone() for key, value in dense.items()}
    chosen = recipe(score=OBS, granularity={"name": "n:m"}, allocation="per_layer", repair=LSQ)
    rows = {name: reached(model, data, name) for name in ("0.weight", "3.weight")}
    masks = prune(model, chosen, data).masks
    for name, mask in masks.items():
        groups = mask.movedim(1, -1).reshape(-1, 4)
        assert bool((groups.sum(1) == 2).all())
        weights = dense[name].flatten(1).numpy()
        new, _ = refitted(rows[name][0], weights, np.zeros(len(weights)), mask.flatten(1).numpy())
        assert np.allclose(model.get_parameter(name).detach().flatten(1).numpy(), new, atol=1e-8)


def test_forward_each_layer_is_measured_behind_the_pruned_ones():
    data = blobs(80, 8, dtype=torch.float64)
    model = mlp(8, 9, 3, dtype=torch.float64)
    before = copied(model)
    chosen = recipe(score=OBS, repair=LSQ, allocation="per_layer", order="forward")
    assert chosen.plan(model).layer_by_layer
    masks = prune(model, chosen, data).masks
    hidden = torch.relu(data[0] @ model[0].weight.detach().T + model[0].bias.detach()).numpy()
    new, bias = refitted(
        hidden, before["2.weight"].numpy(), before["2.bias"].numpy(), masks["2.weight"].numpy()
    )
    assert np.allclose(model[2].weight.detach().numpy(), new, atol=1e-9)
    assert np.allclose(model[2].bias.detach().numpy(), bias, atol=1e-9)


def test_layer_by_layer_only_the_layer_in_turn_is_measured(monkeypatch):
    from prunekit.pruning import step_work

    asked = []
    collect = step_work.collect
    monkeypatch.setattr(
        step_work,
        "collect",
        lambda subject, *rest, **more: asked.append(list(subject.names)) or collect(subject, *rest, **more),
    )
    settings = {"score": "layer_obs", "repair": LSQ}
    prune(mlp(6, 5, 4, 3), recipe(**settings, allocation="per_layer", order="forward"), blobs(40, 6))
    assert asked == [["0.weight"], ["2.weight"], ["4.weight"]]
    asked.clear()
    prune(mlp(6, 5, 4, 3), recipe(**settings, order="backward"), blobs(40, 6))
    assert asked == [["0.weight", "2.weight", "4.weight"]] * 3  # layers compete: all are scored


def test_layer_by_layer_the_mask_of_the_layer_in_turn_acts_alone(monkeypatch):
    acted = []
    apply = Masks.apply
    monkeypatch.setattr(
        Masks,
        "apply",
        lambda self, model, unless_in=None: (
            acted.append([name for name in self if unless_in is None or self[name] is not unless_in[name]])
            or apply(self, model, unless_in=unless_in)
        ),
    )
    model = mlp(6, 5, 4, 3)
    settings = {"score": "layer_obs", "repair": LSQ, "order": "forward"}
    pruned = prune(model, recipe(**settings, allocation="per_layer"), blobs(40, 6))
    assert acted == [["0.weight", "2.weight", "4.weight"], ["2.weight"], ["4.weight"]]
    assert all(bool((model.get_parameter(name)[~mask] == 0).all()) for name, mask in pruned.masks.items())


@pytest.mark.parametrize("allocation", ["per_layer", "erk"])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_layer_by_layer_the_amounts_are_the_same(allocation, order):
    settings = {"allocation": allocation, "order": order}
    schedule = {"name": "linear", "sparsity": 0.6, "steps": 2}
    one, other = mlp(10, 16, 8, 3), mlp(10, 16, 8, 3)
    prune(one, recipe(**settings, schedule=schedule, score="layer_obs"), blobs(64, 10))
    prune(other, recipe(**settings, schedule=schedule, score="magnitude"))
    assert [zeros(one, name) for name in ("0.weight", "2.weight", "4.weight")] == [
        zeros(other, name) for name in ("0.weight", "2.weight", "4.weight")
    ]


class TestBadInput:
    def test_fewer_samples_than_inputs(self):
        model, data = mlp(40, 6, 3), blobs(10, 40)
        prune(model, recipe(score="layer_obs", repair=LSQ), data)  # damping makes up for it
        for part in ({"score": {"name": "layer_obs", "damp": 0}}, {"repair": {**LSQ, "damp": 0}}):
            model = mlp(40, 6, 3)
            before = copied(model)
            with pytest.raises(DataError, match=r"0\.weight: .*singular"):
                prune(model, recipe(**part), data)
            assert same(before, copied(model))

    def test_all_inputs_dead(self):
        data = torch.zeros(20, 5), torch.zeros(20, dtype=torch.long)
        model = nn.Sequential(nn.Linear(5, 3))
        bias = model[0].bias.detach().clone()
        prune(model, recipe(score="layer_obs", repair=LSQ), data)  # nothing is lost: any order is right
        assert zeros(model, "0.weight") == 8
        assert torch.equal(model[0].bias, bias)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_inputs_that_are_not_finite(self, bad):
        x, targets = blobs(20, 5)
        x[3, 1] = bad
        model = mlp(5, 4, 3)
        before = copied(model)
        with pytest.raises(DataError, match="the layer '0' are not finite"):
            prune(model, recipe(score="layer_obs"), (x, targets))
        assert same(before, copied(model))

    def test_a_layer_that_never_ran(self):
        model = mlp(5, 4, 3)
        model.spare = nn.Linear(4, 4)
        model.forward = lambda x: model[2](model[1](model[0](x)))
        with pytest.raises(DataError, match="'spare' never ran"):
            prune(model, recipe(score="layer_obs"), blobs(20, 5))

    @pytest.mark.parametrize("part", [{"score": "layer_obs"}, {"repair": LSQ}, {"repair": "obs_update"}])
    def test_layers_that_have_no_rows_are_refused_before_anything_is_measured(self, part):
        model = nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Flatten())
        with pytest.raises(ModelError, match=r"0\.weight is a parameter of '0', a ConvTranspose2d"):
            recipe(**part).plan(model)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype):
        data = blobs(80, 10)
        model, exact = mlp(10, 16, 3).to(dtype), mlp(10, 16, 3).to(dtype).float()
        chosen = recipe(score="layer_obs", repair=LSQ)
        masks = prune(model, chosen, (data[0].to(dtype), data[1])).masks
        expected = prune(exact, chosen, (data[0].to(dtype).float(), data[1])).masks
        different = sum(int((masks[name] != expected[name]).sum()) for name in masks)
        assert different <= 4
        assert model[0].weight.dtype == dtype
        agree = (masks["0.weight"] == expected["0.weight"]).all(1)
        assert torch.allclose(model[0].weight[agree].float(), exact[0].weight[agree], atol=0.02)

    def test_pruning_twice_removes_no_more(self):
        model, data = mlp(10, 16, 3), blobs(64, 10)
        chosen = recipe(score="layer_obs", repair=LSQ)
        once = prune(model, chosen, data).masks
        after = copied(model)
        again = prune(model, chosen, data).masks
        assert same(dict(once), dict(again))
        assert all(torch.allclose(after[key], value, atol=1e-5) for key, value in copied(model).items())
