"""The sensitivity of layers, against networks that are pruned by hand in one layer alone."""

import copy
import csv

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit import Recipe, Session
from prunekit.errors import InputError
from prunekit.pruning import SensitivityCurves
from small_nets import blobs, copied, mlp, same

DATA = blobs(24)
HALF = {"name": "one_shot", "sparsity": 0.5}
TRIED = (0.3, 0.6, 0.9)


def session(model=None, data=DATA, **settings):
    values = {"schedule": {"name": "linear", "sparsity": 0.5, "steps": 2}, **settings}
    return Session(model or mlp(10, 16, 8, 3), Recipe.parse(values), data=data)


def loss(model):
    with torch.no_grad():
        return float(cross_entropy(model(DATA[0]), DATA[1]))


def accuracy(model):
    return float((model(DATA[0]).argmax(1) == DATA[1]).double().mean())


def without_weights(model, layer, count):
    """The network without the smallest weights of a layer."""
    weight = copy.deepcopy(model)
    flat = weight[layer].weight.data.view(-1)
    flat[flat.abs().argsort()[:count]] = 0
    return weight


@pytest.mark.parametrize(("metric", "by_hand"), [(None, loss), (accuracy, accuracy)])
def test_of_single_weights(metric, by_hand):
    model = mlp(10, 16, 8, 3)
    before = copied(model)
    found = session(model).sensitivity(TRIED, metric=metric)
    assert same(before, copied(model))
    assert found.dense == pytest.approx(by_hand(model), rel=1e-6)
    assert found.sizes == {"0.weight": 160, "2.weight": 128, "4.weight": 24}
    assert found.removed["2.weight"] == (38, 77, 115)
    for layer, name in ((0, "0.weight"), (2, "2.weight"), (4, "4.weight")):
        expected = [by_hand(without_weights(model, layer, count)) for count in found.removed[name]]
        assert found.values[name] == pytest.approx(expected, rel=1e-6), name
    assert len({value for values in found.values.values() for value in values}) > 3


def test_of_units():
    model = mlp(10, 16, 8, 3)
    found = session(model, score="magnitude", granularity="unit").sensitivity((0.25, 0.5))
    for layer, size in ((0, 16), (2, 8)):
        lowest = model[layer].weight.detach().abs().sum(1).argsort()
        expected = []
        for share in (0.25, 0.5):
            smaller = copy.deepcopy(model)
            for parameter in smaller[layer].parameters():
                parameter.data[lowest[: round(share * size)]] = 0
            expected.append(loss(smaller))
        assert found.values[str(layer)] == pytest.approx(expected, rel=1e-6)
        assert found.removed[str(layer)] == (size // 4, size // 2)


def test_under_way_the_others_are_as_they_are_and_nothing_comes_back():
    model = mlp(10, 16, 8, 3)
    running = session(model, allocation="per_layer")
    next(running.run())  # a quarter of every layer
    found = running.sensitivity((0.1, 0.5))
    assert found.dense == pytest.approx(loss(model), rel=1e-6)
    assert found.removed["2.weight"] == (32, 64)
    expected = [loss(without_weights(model, 2, count)) for count in (32, 64)]
    assert found.values["2.weight"] == pytest.approx(expected, rel=1e-6)
    assert len(running.history) == 1


def test_of_all_layers_also_where_a_step_takes_one():
    found = [
        session(score="wanda", order=order, allocation="per_layer", granularity="weight").sensitivity(TRIED)
        for order in ("all", "forward")
    ]
    assert found[0] == found[1]
    assert len(set(found[0].values["4.weight"])) == 3


def test_a_ranking_that_is_made_once_is_that_of_the_first_step():
    warm_up = {"iterations": 20, "batch_size": 24, "lr": 0.1}
    results = []
    for looked in (False, True):
        running = session(rank="once", warm_up=warm_up)
        if looked:
            running.sensitivity(TRIED)
            assert running.state_dict()["ranking"] is None
        list(running.run())
        results.append(running.masks)
    assert results[0] == results[1]


def test_a_metric_that_fails_leaves_the_network_as_it_was():
    model = mlp(10, 16, 8, 3)
    before = copied(model)

    def broken(net):
        if not same(before, copied(net)):
            raise RuntimeError("broken")
        return 1.0

    with pytest.raises(RuntimeError, match="broken"):
        session(model).sensitivity(metric=broken)
    assert same(before, copied(model))


# ---- how it is shown ---------------------------------------------------------------------------------------


def curves():
    removed, values = {"a": (2, 3), "b": (4, 6)}, {"a": (0.8, 0.1), "b": (0.9, 0.7)}
    return SensitivityCurves("accuracy", 0.9, (0.5, 0.75), {"a": 4, "b": 8}, removed, values)


def test_it_is_a_short_table():
    assert repr(curves()) == "<SensitivityCurves: accuracy of 2 layers at 2 sparsities, 0.9 dense>"
    assert str(curves()).splitlines() == [
        "accuracy, 0.9 dense",
        "layer  size  50%  75%",
        "a         4  0.8  0.1",
        "b         8  0.9  0.7",
    ]
    assert curves()._repr_html_().startswith("<pre>accuracy")


def test_its_rows_are_those_of_the_file(tmp_path):
    curves().to_csv(tmp_path / "curves.csv")
    with (tmp_path / "curves.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    points = [
        (row["layer"], int(row["removed"]), float(row["sparsity"]), float(row["value"])) for row in rows
    ]
    assert points == [
        ("a", 0, 0.0, 0.9), ("a", 2, 0.5, 0.8), ("a", 3, 0.75, 0.1),
        ("b", 0, 0.0, 0.9), ("b", 4, 0.5, 0.9), ("b", 6, 0.75, 0.7),
    ]  # fmt: skip
    assert {row["metric"] for row in rows} == {"accuracy"}


def test_its_plot_has_a_curve_for_each_layer(tmp_path):
    pytest.importorskip("matplotlib", reason="the curves are drawn by matplotlib")
    figure = curves().plot()
    axes = figure.axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["a"] == [[0, 0.9], [0.5, 0.8], [0.75, 0.1]]
    assert lines["b"] == [[0, 0.9], [0.5, 0.9], [0.75, 0.7]]
    assert axes.get_ylabel() == "accuracy"
    figure.savefig(tmp_path / "curves.png")
    assert curves().plot(axes) is figure


@pytest.mark.parametrize(
    ("tried", "settings", "message"),
    [
        ((), {}, r"sparsities = \[\]: they must increase, above 0 and below 1"),
        ((0.5, 0.5), {}, "they must increase"),
        ((0.0, 0.5), {}, "they must increase"),
        ((0.5, 1.0), {}, "they must increase"),
        ((50,), {}, "sparsities = 50: a number of at least 0 and at most 1"),
        (TRIED, {"data": None}, "give the session some, or a metric"),
        (
            TRIED,
            {"granularity": {"name": "n:m", "n": 2, "m": 4}, "schedule": HALF, "model": mlp(8, 16, 8, 3)},
            "removes one share of every layer",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tried, settings, message):
    with pytest.raises(InputError, match=message):
        session(**{"data": None, **settings} if "model" in settings else settings).sensitivity(tried)
