"""Correlations of connections against `numpy.corrcoef`, and mean gradients against loops and autograd."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit.batches import TensorBatches
from prunekit.errors import DataError, ModelError
from prunekit.losses import squared_error
from prunekit.statistics import (
    Collector,
    ConnectionCorrelation,
    CrossMoments,
    MeanGradient,
    StatContext,
    Statistic,
    collect,
)
from prunekit.task import Task
from small_nets import Tied, blobs, convnet, copied, images, mlp, same
from unfolding import design


def gather(model, x, names=("0.weight",), batch_size=7, **settings):
    batches = TensorBatches(x, torch.zeros(len(x))).sample(10_000, batch_size, seed=0)
    asked = ConnectionCorrelation(**settings)
    return collect(StatContext(model, list(names)), batches, [asked], task=Task(F.mse_loss))[asked]


def pearson(one, other):
    """The correlation of two rows of numbers; 0 if one is constant."""
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def of_linear(lower, upper):
    """(outputs, inputs) of activations (n, inputs) and (n, outputs)."""
    lower, upper = lower.double().numpy(), upper.double().numpy()
    return np.array([[pearson(low, up) for low in lower.T] for up in upper.T])


def of_convolution(layer, x, upper):
    """Mean |r| over the positions, every connection by itself, in the shape of the weight."""
    rows, inside = design(layer, x), design(layer, torch.ones_like(x[:1]))
    n, places = len(x), inside.shape[1]
    rows = rows.reshape(layer.groups, n, places, -1)
    upper = upper.double().numpy().reshape(n, layer.groups, -1, places)
    found = np.zeros((layer.groups, upper.shape[2], rows.shape[3]))
    for group, output, column in np.ndindex(*found.shape):
        values = [
            abs(pearson(rows[group, :, place, column], upper[:, group, output, place]))
            for place in range(places)
            if inside[group, place, column]
        ]
        found[group, output, column] = np.mean(values) if values else 0
    return found.reshape(layer.weight.shape)


def layers():
    yield nn.Conv2d(2, 3, 3)
    yield nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    yield nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False)
    yield nn.Conv2d(3, 3, 3, padding=1, groups=3)
    yield nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular")
    yield nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")
    yield nn.Conv2d(2, 2, 1, padding=1)
    yield nn.Conv1d(4, 4, 5, stride=2, padding=3, groups=2)
    yield nn.Conv1d(2, 3, 3, padding=2, dilation=2)
    yield nn.Conv3d(2, 2, 2)


def images_for(layer, count=12):
    return torch.randn(count, layer.in_channels, *[6, 5, 3][: len(layer.kernel_size)]) + 1


@pytest.mark.parametrize("layer", list(layers()), ids=str)
@pytest.mark.parametrize("budget", [2**29, 1], ids=["one pass", "a pass for each line"])
@torch.no_grad()
def test_convolutions(layer, budget):
    x = images_for(layer)
    found = gather(nn.Sequential(layer, nn.Tanh()), x, budget_bytes=budget, batch_size=5)["0.weight"]
    assert found.dtype == torch.float64
    assert np.allclose(found.numpy(), of_convolution(layer, x, torch.tanh(layer(x))), atol=1e-5)


@torch.no_grad()
def test_linear_layers_have_a_sign():
    model, x = mlp(6, 5, 4, 2), torch.randn(40, 6).cumsum(0)
    found = gather(model, x, ("0.weight", "2.weight", "4.weight"))
    for place in (0, 2, 4):
        lower = model[:place](x)
        upper = model[: place + 2](x)  # behind the ReLU; the last layer has none
        value = found[f"{place}.weight"].numpy()
        assert np.allclose(value, of_linear(lower, upper), atol=1e-5)
    assert float(found["0.weight"].min()) < 0 < float(found["0.weight"].max())


@torch.no_grad()
def test_a_convolution_over_a_single_position_has_a_sign():
    # its groups are the positions of a locally connected layer
    layer, x = nn.Conv1d(12, 6, 1, groups=3), torch.randn(40, 12, 1).cumsum(0)
    found = gather(nn.Sequential(layer, nn.ReLU()), x)["0.weight"]
    upper = torch.relu(layer(x))
    for group in range(3):
        expected = of_linear(x[:, 4 * group : 4 * group + 4, 0], upper[:, 2 * group : 2 * group + 2, 0])
        assert np.allclose(found[2 * group : 2 * group + 2, :, 0].numpy(), expected, atol=1e-5)
    assert float(found.min()) < 0 < float(found.max())


@torch.no_grad()
def test_further_dimensions_of_linear_layers_are_examples():
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid()), torch.randn(9, 5, 4)
    expected = of_linear(x.flatten(0, 1), model(x).flatten(0, 1))
    assert np.allclose(gather(model, x)["0.weight"].numpy(), expected, atol=1e-5)


class Residual(nn.Module):
    """Batch norm and a function behind one layer, a sum behind the other, which is the activation's end."""

    def __init__(self):
        super().__init__()
        self.one, self.norm = nn.Linear(5, 5), nn.BatchNorm1d(5)
        self.other = nn.Linear(5, 5)

    def forward(self, x):
        x = F.relu_(self.norm(self.one(x)))
        return F.relu(x + self.other(x) * 2)


@torch.no_grad()
def test_the_upper_end_is_behind_norms_and_functions_but_not_behind_a_sum():
    torch.manual_seed(1)
    model, x = Residual(), torch.randn(50, 5)
    model.norm.running_mean.normal_()
    model.norm.weight.uniform_(-1, 1)
    found = gather(model, x, ("one.weight", "other.weight"))
    model.eval()
    hidden = torch.relu(model.norm(model.one(x)))
    assert np.allclose(found["one.weight"].numpy(), of_linear(x, hidden), atol=1e-5)
    assert np.allclose(found["other.weight"].numpy(), of_linear(hidden, model.other(hidden)), atol=1e-5)


class Branching(nn.Module):
    """Not traceable, as it looks at its data."""

    def __init__(self):
        super().__init__()
        self.layer, self.idle = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x):
        if x.sum() > 1e9:
            return self.idle(x)
        return torch.relu(self.layer(x))


@torch.no_grad()
def test_where_the_network_cannot_be_traced_the_output_is_the_upper_end():
    model, x = Branching(), torch.randn(20, 4)
    found = gather(model, x, ("layer.weight",))
    assert np.allclose(found["layer.weight"].numpy(), of_linear(x, model.layer(x)), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
@torch.no_grad()
def test_the_batch_size_and_large_means_cost_no_digits(batch_size):
    model = nn.Sequential(nn.Linear(3, 2).double())
    x = torch.randn(130, 3, dtype=torch.float64).cumsum(0) + 1e5
    found = gather(model, x, batch_size=batch_size)["0.weight"].numpy()
    assert np.allclose(found, of_linear(x, model(x)), atol=1e-9)


@torch.no_grad()
def test_what_is_constant_has_a_correlation_of_zero():
    model, x = mlp(5, 6, 3), torch.randn(64, 5)
    x[:, 1], x[:, 3] = 0, 0.1
    model[0].bias[2] = -1e6  # a neuron that never fires
    model[0].weight[4] = 0  # one that always gives its bias
    model[0].bias[4] = 0.3
    found = gather(model, x, ("0.weight", "2.weight"))
    assert all(bool(value.isfinite().all()) for value in found.values())
    assert float(found["0.weight"][:, [1, 3]].abs().max()) == 0
    assert float(found["0.weight"][[2, 4]].abs().max()) == 0
    assert float(found["2.weight"][:, [2, 4]].abs().max()) == 0
    assert int((found["0.weight"] != 0).sum()) == 4 * 3


@torch.no_grad()
def test_half_precision_is_summed_in_float32():
    model, x = mlp(6, 5, 3), torch.randn(80, 6)
    exact = gather(model, x)["0.weight"]
    half = gather(model.to(torch.bfloat16), x.to(torch.bfloat16))["0.weight"]
    assert half.dtype == torch.float64
    assert torch.allclose(half, exact, atol=0.02)


def test_shards_merge():
    x, y = torch.randn(2, 90, 4).cumsum(1), torch.randn(2, 90, 3).cumsum(1)
    whole, parts = CrossMoments(2, 4, 3), [CrossMoments(2, 4, 3) for _ in range(3)]
    whole.add(x, y)
    for part, number in zip(parts, (slice(0, 10), slice(10, 10), slice(10, 90)), strict=True):
        part.add(x[:, number], y[:, number])
    for part in parts[1:]:
        parts[0].merge(part)
    expected = [
        [[pearson(a, b) for a in one.T] for b in two.T] for one, two in zip(x.numpy(), y.numpy(), strict=True)
    ]
    for found in (whole, parts[0]):
        assert np.allclose(found.correlations.numpy(), expected, atol=1e-5)


def test_what_is_refused():
    with pytest.raises(DataError, match="the layer 'idle' never ran on the calibration data, so nothing"):
        gather(Branching(), torch.randn(9, 4), ("layer.weight", "idle.weight"))
    with pytest.raises(ModelError, match="Embedding"):
        gather(Tied(), torch.randint(11, (9, 4)), ("out.weight",))
    x = torch.randn(9, 4)
    x[3, 2] = torch.inf
    with pytest.raises(DataError, match="the inputs of the layer '0' are not finite"):
        gather(nn.Sequential(nn.Linear(4, 2)), x)
    with pytest.raises(DataError, match="the activations of the layer '0' are not finite"):
        gather(nn.Sequential(nn.Linear(4, 2), Reciprocal()), torch.zeros(9, 4))
    with pytest.raises(DataError, match="the layer '0' saw one example only"):
        gather(nn.Sequential(nn.Linear(4, 2)), torch.randn(1, 4))
    convolution, targets = nn.Sequential(nn.Conv2d(1, 2, 3)), torch.zeros(4)
    batches = [(torch.randn(4, 1, size, size), targets) for size in (6, 7)]
    asked = ConnectionCorrelation()
    with pytest.raises(DataError, match="the layer '0' reads inputs of several sizes"):
        collect(StatContext(convolution, ["0.weight"]), batches, [asked], task=Task(F.mse_loss))


class Reciprocal(nn.Module):
    """Infinite where its input is the bias."""

    def forward(self, x):
        return (x - x).exp() / 0


class Conv1D(nn.Module):
    """As in transformers: a linear layer whose weight is (inputs, outputs)."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


@torch.no_grad()
def test_weights_with_their_inputs_first():
    model, x = nn.Sequential(Conv1D(3, 5), nn.ReLU()), torch.randn(30, 5)
    found = gather(model, x)["0.weight"]  # its output is no layer of the trace: the upper end is the output
    assert np.allclose(found.numpy(), of_linear(x, model[0](x)).T, atol=1e-5)


@torch.no_grad()
def test_a_layer_that_is_called_twice_counts_both_calls_without_what_follows():
    layer = nn.Linear(4, 4)
    model, x = nn.Sequential(layer, nn.Tanh(), layer, nn.Sigmoid()), torch.randn(40, 4)
    found = gather(model, x)["0.weight"]
    lower = torch.cat([x, torch.tanh(layer(x))])
    assert np.allclose(found.numpy(), of_linear(lower, layer(lower)), atol=1e-5)


def mean_gradient(model, data, names, batch_size=7, loss=cross_entropy):
    batches = TensorBatches(*data).sample(10_000, batch_size, seed=0)
    return collect(StatContext(model, names), batches, [MeanGradient()], task=Task(loss))[MeanGradient()]


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
def test_it_is_the_finite_difference_of_the_mean_loss(loss):
    model, data = mlp(4, 5, 3, dtype=torch.float64), blobs(23, 4, dtype=torch.float64)
    model[1] = nn.Tanh()
    found = mean_gradient(model, data, ["0.weight", "2.weight"], loss=loss)
    step = 1e-6
    for name in found:
        weight = model.get_parameter(name)
        for place in np.ndindex(*weight.shape):
            losses = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight[place] += sign * step
                    losses.append(float(loss(model(data[0]), data[1])))
                    weight[place] -= sign * step
            assert float(found[name][place]) == pytest.approx((losses[0] - losses[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("batch_size", [1, 7, 22, 23, 500])
def test_the_batch_size_does_not_matter(batch_size):
    model, data = mlp(4, 5, 3, dtype=torch.float64), blobs(23, 4, dtype=torch.float64)
    whole = torch.autograd.grad(cross_entropy(model(data[0]), data[1]), model[0].weight)[0]
    found = mean_gradient(model, data, ["0.weight"], batch_size)
    assert torch.allclose(found["0.weight"], whole, atol=1e-14)


def test_the_model_is_left_as_it_was():
    model = convnet()
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    marked = torch.full_like(model[7].weight, 3.0)
    model[7].weight.grad = marked
    before = copied(model)
    modes = [module.training for module in model.modules()]
    found = mean_gradient(model, images(), ["0.weight", "7.weight"])
    assert same(before, copied(model))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 7
    assert model[7].weight.grad is marked
    assert bool((marked == 3).all())
    assert all(p.grad is None for name, p in model.named_parameters() if name != "7.weight")
    assert float(found["0.weight"].abs().sum()) > 0  # a frozen weight is scored as well


def test_normalisation_and_dropout_are_in_eval_mode():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    model(torch.randn(50, 4, dtype=torch.float64))  # running statistics that differ from any batch's
    model.train()
    data = blobs(20, 4, dtype=torch.float64)
    one = mean_gradient(model, data, ["0.weight"])["0.weight"]
    assert torch.equal(one, mean_gradient(model, data, ["0.weight"])["0.weight"])
    model.eval()
    expected = torch.autograd.grad(cross_entropy(model(data[0]), data[1]), model[0].weight)[0]
    assert torch.allclose(one, expected, atol=1e-12)


def test_it_works_where_gradients_are_off():
    with torch.no_grad():
        assert mean_gradient(mlp(4, 3), blobs(20, 4), ["0.weight"])["0.weight"].abs().sum() > 0


def test_all_weights_frozen_and_weights_that_are_not_used():
    model = mlp(4, 3).requires_grad_(False)
    model.spare = nn.Linear(2, 2)
    model.forward = lambda inputs: model[0](inputs)
    found = mean_gradient(model, blobs(20, 4), ["0.weight", "spare.weight"])
    assert float(found["0.weight"].abs().sum()) > 0
    assert float(found["spare.weight"].abs().sum()) == 0
    assert not model[0].weight.requires_grad


def test_half_precision_does_not_overflow():
    model = mlp(4, 3, dtype=torch.bfloat16)
    found = mean_gradient(model, blobs(200, 4, dtype=torch.bfloat16), ["0.weight"])
    assert found["0.weight"].dtype == torch.float32
    assert bool(torch.isfinite(found["0.weight"]).all())


def test_tied_weights_have_the_sum_of_their_gradients():
    layer = nn.Linear(4, 4, bias=False).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    data = blobs(20, 4, classes=4, dtype=torch.float64)
    apart = [layer.weight.detach().clone().requires_grad_() for _ in range(2)]
    loss = cross_entropy(torch.tanh(data[0] @ apart[0].T) @ apart[1].T, data[1])
    expected = sum(torch.autograd.grad(loss, apart))
    assert torch.allclose(mean_gradient(model, data, ["0.weight"])["0.weight"], expected, atol=1e-12)


class Calls(Statistic):
    def __init__(self, log, fails=False):
        self.log, self.fails = log, fails

    def start(self, subject):
        if self.fails:
            raise RuntimeError("cannot start")
        return _CallsCollector(self.log)


class _CallsCollector(Collector):
    def __init__(self, log):
        self.log = log

    def batch(self, batch, loss, terms):
        self.log.append(len(batch))

    def finish(self):
        return {}

    @contextmanager
    def watching(self, batch):
        try:
            yield
        finally:
            self.log.append("watched")


def test_one_pass_serves_all_and_equal_requests_are_one():
    model, passes, log = mlp(4, 3), [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    request = Calls(log)
    needs = [MeanGradient(), request, MeanGradient(), request]
    batches = TensorBatches(*blobs(10, 4)).sample(10, 4, 0)
    found = collect(StatContext(model, ["0.weight"]), batches, needs, task=Task(cross_entropy))
    assert len(passes) == 3
    assert log == ["watched", 4, "watched", 4, "watched", 2]
    assert set(found) == {MeanGradient(), request}


def test_nothing_asked_is_no_pass():
    assert collect(StatContext(mlp(4, 3), []), iter(()), [], task=Task(cross_entropy)) == {}


def test_an_empty_pass_is_refused():
    with pytest.raises(DataError, match="calibration data is empty"):
        collect(StatContext(mlp(4, 3), ["0.weight"]), iter(()), [MeanGradient()], task=Task(cross_entropy))


def test_a_loss_that_is_not_finite_is_refused_and_all_is_put_back():
    model, log = mlp(4, 3).requires_grad_(False).train(), []
    bad = [(torch.full((2, 4), float("nan")), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(DataError, match="the loss on calibration batch 0 is nan"):
        collect(StatContext(model, ["0.weight"]), bad, [MeanGradient(), Calls(log)], task=Task(cross_entropy))
    assert log == ["watched"]
    assert model.training
    assert not model[0].weight.requires_grad


def test_a_collector_that_cannot_start_leaves_nothing_behind():
    model = mlp(4, 3).requires_grad_(False).train()
    with pytest.raises(RuntimeError, match="cannot start"):
        collect(
            StatContext(model, ["0.weight"]),
            [],
            [MeanGradient(), Calls([], fails=True)],
            task=Task(cross_entropy),
        )
    assert not model[0].weight.requires_grad
    assert model.training
