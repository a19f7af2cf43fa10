import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from prunekit.batches import TensorBatches
from prunekit.errors import DataError
from prunekit.losses import squared_error
from prunekit.statistics import Collector, MeanGradient, StatContext, Statistic, collect
from small_nets import blobs, convnet, copied, images, mlp, same


def mean_gradient(model, data, names, batch_size=7, loss=cross_entropy):
    batches = TensorBatches(*data).sample(10_000, batch_size, seed=0)
    return collect(StatContext(model, names), batches, [MeanGradient()], loss=loss)[MeanGradient()]


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

    def batch(self, batch, loss):
        self.log.append(len(batch[0]))

    def finish(self):
        return {}

    def close(self):
        self.log.append("closed")


def test_one_pass_serves_all_and_equal_requests_are_one():
    model, passes, log = mlp(4, 3), [], []
    model.register_forward_hook(lambda *_: passes.append(1))
    request = Calls(log)
    needs = [MeanGradient(), request, MeanGradient(), request]
    batches = TensorBatches(*blobs(10, 4)).sample(10, 4, 0)
    found = collect(StatContext(model, ["0.weight"]), batches, needs, loss=cross_entropy)
    assert len(passes) == 3
    assert log == [4, 4, 2, "closed"]
    assert set(found) == {MeanGradient(), request}


def test_nothing_asked_is_no_pass():
    assert collect(StatContext(mlp(4, 3), []), iter(()), [], loss=cross_entropy) == {}


def test_an_empty_pass_is_refused():
    with pytest.raises(DataError, match="calibration data is empty"):
        collect(StatContext(mlp(4, 3), ["0.weight"]), iter(()), [MeanGradient()], loss=cross_entropy)


def test_a_loss_that_is_not_finite_is_refused_and_all_is_put_back():
    model, log = mlp(4, 3).requires_grad_(False).train(), []
    bad = [(torch.full((2, 4), float("nan")), torch.zeros(2, dtype=torch.long))]
    with pytest.raises(DataError, match="the loss on calibration batch 0 is nan"):
        collect(StatContext(model, ["0.weight"]), bad, [MeanGradient(), Calls(log)], loss=cross_entropy)
    assert log == ["closed"]
    assert model.training
    assert not model[0].weight.requires_grad


def test_a_collector_that_cannot_start_leaves_nothing_behind():
    model = mlp(4, 3).requires_grad_(False).train()
    with pytest.raises(RuntimeError, match="cannot start"):
        collect(
            StatContext(model, ["0.weight"]), [], [MeanGradient(), Calls([], fails=True)], loss=cross_entropy
        )
    assert not model[0].weight.requires_grad
    assert model.training
