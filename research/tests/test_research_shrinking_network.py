"""The courses of the shrinking network against networks with the units' outgoing weights at zero."""

import copy

import pytest
import torch

from prunekit.losses import squared_error
from prunekit.models import create
from shrinking_network import GAINS, Task, courses, logistic_loss, misclassified, summary, sweeps, trained

HIDDEN = [6, 5]


@pytest.fixture(scope="module")
def small():
    generator = torch.Generator().manual_seed(3)
    inputs = torch.rand(200, 8, generator=generator)
    targets = (inputs @ torch.randn(8, 3, generator=generator)).argmax(1)
    task = Task((inputs[:150], targets[:150]), (inputs[150:], targets[150:]), logistic_loss, squared_error)
    settings = {"hidden": HIDDEN, "activation": "sigmoid", "output_activation": "sigmoid"}
    model = create({"name": "mlp", **settings}, [8], 3, seed=0)
    return next(trained(model, task, (0.9,), 0.02, 0)), task


METHODS = ("oracle", "first order", "second order as published, single pass", "misclassified")


@pytest.fixture(scope="module")
def rows(small):
    return list(courses("small", *small, 0, (*METHODS, "oracle, single pass")))


def without(model, units):
    less = copy.deepcopy(model)
    for name, unit in units:
        getattr(less, {"fc1": "fc2", "fc2": "fc3"}[name]).weight.data[:, unit] = 0
    return less


@torch.no_grad()
def quality(model, task):
    correct = [
        (model(part[0]).argmax(1) == part[1]).double().mean().item() for part in (task.train, task.test)
    ]
    return float(squared_error(model(task.train[0]), task.train[1])), *correct


@pytest.mark.parametrize("method", METHODS)
def test_every_row_is_what_the_network_without_these_units_does(small, rows, method):
    model, task = small
    course = [row for row in rows if row["method"] in ("dense", method)]
    assert len(course) == 1 + sum(HIDDEN)
    for number, row in enumerate(course):
        assert row["removed"] == number
        less = without(model, [(each["layer"], each["unit"]) for each in course[1 : number + 1]])
        error, train, test = quality(less, task)
        assert float(row["error"]) == pytest.approx(error, rel=1e-4)
        assert (row["train_accuracy"], row["test_accuracy"]) == pytest.approx((train, test), abs=1e-6)


def test_the_least_misclassified_goes_first_and_the_squared_error_decides_where_they_are_equal(small, rows):
    model, task = small
    course = [row for row in rows if row["method"] == "misclassified"]
    gone = []
    for row in course:
        possible = [
            (name, unit)
            for name, units in zip(("fc1", "fc2"), HIDDEN, strict=True)
            for unit in range(units)
            if (name, unit) not in gone
        ]
        costs = []
        for place in possible:
            error, train, _ = quality(without(model, [*gone, place]), task)
            costs.append((round(150 * (1 - train)), round(error, 5)))
        gone.append((row["layer"], row["unit"]))
        assert costs[possible.index(gone[-1])] == min(costs)
    with torch.no_grad():
        outputs = model(task.train[0])
    assert float(misclassified(outputs, task.train[1])) == pytest.approx(
        1 - quality(model, task)[1], abs=1e-5
    )


def test_sweeps_lead_from_the_error_before_a_removal_to_that_after_it(small, rows):
    course = [row for row in rows if row["method"] == "oracle"]
    before = next(row for row in rows if row["method"] == "dense")
    found = list(sweeps(*small, course))
    assert [row["removed_before"] for row in found[:: len(GAINS)]] == [0, 10]
    at = {(row["removed_before"], row["gain"]): float(row["error"]) for row in found}
    assert at[0, 1] == pytest.approx(float(before["error"]), rel=1e-4)
    assert at[0, 0] == pytest.approx(float(course[0]["error"]), rel=1e-4)
    assert at[10, 1] == pytest.approx(float(course[9]["error"]), rel=1e-4)
    assert at[10, 0] == pytest.approx(float(course[10]["error"]), rel=1e-4)


def test_a_summary_counted_by_hand(rows):
    found = {row["method"]: row for row in summary(rows)}
    assert set(found) == {*METHODS, "oracle, single pass"}
    dense = rows[0]
    for method, said in found.items():
        course = [row for row in rows if row["method"] == method]
        layers = [row["layer"] for row in course]
        assert (said["first_layer"], said["last_layer"]) == (layers.count("fc1"), layers.count("fc2"))
        kept = [row["removed"] for row in course if dense["test_accuracy"] - row["test_accuracy"] > 0.0099]
        assert said["one_point_test"] == min(kept) - 1
        change = float(course[-1]["error"]) - float(dense["error"])
        assert float(said["true_of_30"]) == pytest.approx(change, rel=1e-4)
    assert float(found["oracle"]["predicted_of_30"]) == pytest.approx(
        float(found["oracle"]["true_of_30"]), rel=1e-3
    )
    assert found["oracle"]["same_as_oracle"] == sum(HIDDEN)
    assert found["oracle, single pass"]["rank_correlation"] == 1
    assert found["first order"]["rank_correlation"] == ""
