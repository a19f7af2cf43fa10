"""evaluate against scikit-learn and NumPy, and what it leaves untouched."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from prunekit.errors import InputError, ModelError
from prunekit.measure import evaluate


class Table(nn.Module):
    """Returns the rows of a fixed table of outputs that the inputs name."""

    def __init__(self, outputs):
        super().__init__()
        self.register_buffer("outputs", torch.as_tensor(outputs))

    def forward(self, x):
        return self.outputs[x.long()]


def rows(n):
    return torch.arange(n)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 1024])
@pytest.mark.parametrize("classes", [2, 5, 6, 10])
def test_classification_against_scikit_learn(classes, batch_size):
    rng = np.random.default_rng(classes)
    outputs = rng.normal(size=(50, classes)).astype(np.float32) * 3
    targets = rng.integers(classes, size=50)
    targets[:classes] = np.arange(classes)
    found = evaluate(
        Table(outputs), rows(50), torch.tensor(targets), task="classification", batch_size=batch_size
    )
    exact = outputs.astype(np.float64)
    probabilities = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    assert found.examples == 50
    assert found.loss == pytest.approx(metrics.log_loss(targets, probabilities), rel=1e-9)
    assert found.accuracy == metrics.accuracy_score(targets, outputs.argmax(1))
    assert found.mse == pytest.approx(((exact - np.eye(classes)[targets]) ** 2).sum(1).mean(), rel=1e-12)
    if classes > 5:
        assert found.top5 == metrics.top_k_accuracy_score(targets, outputs, k=5)
    else:
        assert found.top5 is None


@pytest.mark.parametrize("shape", [(40,), (40, 1), (40, 3), (40, 2, 3)])
def test_regression_against_numpy(shape):
    rng = np.random.default_rng(1)
    outputs, targets = rng.normal(size=shape).astype(np.float32), rng.normal(size=shape)
    found = evaluate(Table(outputs), rows(40), torch.tensor(targets), task="regression", batch_size=9)
    assert found.loss == found.mse == pytest.approx(((outputs - targets) ** 2).mean(), rel=1e-12)
    if len(shape) == 2:
        assert found.mse == pytest.approx(metrics.mean_squared_error(targets, outputs), rel=1e-12)
    assert found.accuracy is None
    assert found.top5 is None


def test_a_loss_of_ones_own_is_weighted_by_the_batches():
    rng = np.random.default_rng(2)
    outputs, targets = rng.normal(size=(10, 3)), rng.integers(3, size=10)
    found = evaluate(
        Table(outputs),
        rows(10),
        torch.tensor(targets),
        task="classification",
        batch_size=4,  # batches of 4, 4 and 2
        loss=nn.MultiMarginLoss(),
    )
    margins = np.maximum(0, 1 - outputs[np.arange(10), targets][:, None] + outputs)
    margins[np.arange(10), targets] = 0
    assert found.loss == pytest.approx(margins.mean(), rel=1e-12)
    assert found.accuracy == metrics.accuracy_score(targets, outputs.argmax(1))


def test_equal_outputs_are_ranked_by_class_number():
    targets = torch.arange(8)
    found = evaluate(Table(torch.zeros(8, 8)), rows(8), targets, task="classification")
    assert found.accuracy == 1 / 8
    assert found.top5 == 5 / 8


def test_outputs_that_are_not_finite():
    outputs = torch.zeros(4, 6)
    outputs[0, 1] = math.nan
    outputs[1, 2] = math.inf
    found = evaluate(Table(outputs), rows(4), torch.tensor([0, 2, 0, 1]), task="classification")
    assert math.isnan(found.loss)
    assert math.isnan(found.mse)
    assert found.accuracy == 2 / 4  # the NaN is wrong, infinity wins, and the first of equals is class 0
    assert found.top5 == 3 / 4
    found = evaluate(Table(torch.full((2, 1), math.inf)), rows(2), torch.zeros(2, 1), task="regression")
    assert found.loss == found.mse == math.inf


def test_sums_do_not_lose_small_errors():
    outputs = torch.full((10_000, 1), 1e-4)
    outputs[0] = 1e4
    found = evaluate(Table(outputs), rows(10_000), torch.zeros(10_000, 1), task="regression", batch_size=1)
    expected = (outputs.double().numpy() ** 2).mean()
    assert found.mse == pytest.approx(expected, rel=1e-12, abs=0)


def test_evaluation_mode_inside_and_every_flag_back():
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    net.train()
    net[1].eval()
    flags = [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    first = evaluate(net, x, y, task="classification")
    assert first == evaluate(net, x, y, task="classification")
    assert [module.training for module in net.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())

    with pytest.raises(RuntimeError):
        evaluate(net, torch.randn(20, 5), y, task="classification")
    assert [module.training for module in net.modules()] == flags


LINEAR = nn.Linear(4, 3)
X = torch.zeros(6, 4)


@pytest.mark.parametrize(
    ("inputs", "targets", "settings", "words"),
    [
        (X, torch.zeros(6), {"task": "regression"}, r"\(6, 3\).*\(6,\)"),
        (X, torch.zeros(6, 1), {"task": "regression"}, r"\(6, 3\).*\(6, 1\)"),
        (X, torch.zeros(5, 3), {"task": "regression"}, "same first dimension"),
        (X[:0], torch.zeros(0, 3), {"task": "regression"}, "no examples"),
        (X, torch.zeros(6, 3), {"task": "clustering"}, "'clustering'"),
        (X, torch.zeros(6, 3), {"task": "regression", "batch_size": 0}, "batch_size"),
        (X, torch.zeros(6), {"task": "classification"}, "integer type.*float32"),
        (X, torch.zeros(6, 1, dtype=torch.long), {"task": "classification"}, r"\(6, 1\)"),
        (X, torch.full((6,), -1), {"task": "classification"}, "start at 0, got -1"),
        (X, torch.full((6,), 3), {"task": "classification"}, "class 3.*3 outputs"),
    ],
)
def test_refused(inputs, targets, settings, words):
    with pytest.raises(InputError, match=words):
        evaluate(LINEAR, inputs, targets, **settings)


def test_one_column_is_not_broadcast_against_a_vector():
    with pytest.raises(InputError, match="broadcasts neither"):
        evaluate(nn.Linear(4, 1), X, torch.zeros(6), task="regression")


class Gives(nn.Module):
    def __init__(self, give):
        super().__init__()
        self.give = give

    def forward(self, x):
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "words"),
    [
        (lambda x: (x, x), "one tensor of raw outputs, got tuple"),
        (lambda x: x[:2], r"\(2, 4\) for 6 examples"),
        (lambda x: x.sum(), "for 6 examples"),
        (lambda x: x[:, 0], r"\(n, classes\).*\(6,\)"),
        (lambda x: x[:, :1], "2 or more"),
    ],
)
def test_models_that_return_something_else(give, words):
    with pytest.raises(ModelError, match=words):
        evaluate(Gives(give), X, torch.zeros(6, dtype=torch.long), task="classification")


def test_positions_count_as_examples():
    class Texts(nn.Module):
        def forward(self, x):
            return x.unflatten(1, (4, 5))

    inputs = torch.randn(7, 20, dtype=torch.float64)
    targets = torch.randint(4, (7, 5))
    found = evaluate(Texts(), inputs, targets, task="classification", batch_size=3)
    logits = inputs.view(7, 4, 5)
    expected = [(logits[n, :, t], int(targets[n, t])) for n in range(7) for t in range(5)]
    assert found.examples == 35
    assert found.loss == pytest.approx(sum(float(z.logsumexp(0) - z[target]) for z, target in expected) / 35)
    assert found.accuracy == pytest.approx(sum(int(z.argmax()) == target for z, target in expected) / 35)
    own = evaluate(
        Texts(), inputs, targets, task="classification", batch_size=3, loss=nn.functional.cross_entropy
    )
    assert own.loss == pytest.approx(found.loss)
