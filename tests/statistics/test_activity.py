"""Activities against numpy on all the data at once."""

from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.parts.granularity import Unit
from prunekit.statistics import ActivationStats, Moments, StatContext, collect
from prunekit.statistics.activity import What
from prunekit.task import Task
from unit_nets import made


def groups_of(model, example_inputs, **asked):
    return Unit(**asked).elements(model, example_inputs=example_inputs).found


def activity(coupled, inputs, *, kept=None):
    """All of it by group; inputs: a tensor, or batches."""
    batches = [(each, each) for each in ([inputs] if isinstance(inputs, torch.Tensor) else inputs)]
    subject = StatContext(coupled.model, (), coupled=coupled, kept=kept or {})
    needs = [ActivationStats(what) for what in get_args(What)]
    found = collect(subject, batches, needs, task=Task(F.mse_loss))
    return {
        group.name: SimpleNamespace(**{need.what: found[need][group.name] for need in needs})
        for group in coupled.groups
    }


def check(found, read, silent):
    """read: (observations, units) of what the next layer reads; silent: the same of the last activation."""
    np.testing.assert_allclose(found.mean, read.mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.variance, read.var(0), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found.zeros, (silent == 0).mean(0), rtol=1e-12)
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.nan_to_num(np.corrcoef(read.T))
    np.testing.assert_allclose(found.correlation, r, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch", [4, 13, 30])
def test_linear_layers(batch):
    model, inputs, _ = made("2 hidden")
    found = activity(groups_of(model, inputs[:2], inputs=True), inputs.split(batch))
    check(found["input"], inputs.numpy(), inputs.numpy())
    check(found["0"], *(model[:2](inputs).numpy(),) * 2)
    check(found["2"], *(model[:4](inputs).numpy(),) * 2)


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_filters_are_observed_at_every_position(batch):
    model, inputs, _ = made("conv")
    found = activity(groups_of(model, inputs[:2]), inputs.split(batch))

    def rows(x):
        return np.moveaxis(x.numpy(), 1, -1).reshape(-1, x.shape[1])

    check(found["0"], rows(model[:3](inputs)), rows(model[:2](inputs)))
    check(found["3"], rows(model[:6](inputs)), rows(model[:5](inputs)))
    check(found["7"], *(model[:9](inputs).numpy(),) * 2)
    assert 0 < found["0"].zeros.mean() < 1


def test_an_activation_behind_the_flatten():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.ReLU(), nn.Linear(48, 2)).double()
    model.requires_grad_(False)
    inputs = torch.randn(20, 1, 6, 6, dtype=torch.float64)
    rows = np.moveaxis(model[:3](inputs).numpy().reshape(20, 3, 16), 1, -1).reshape(-1, 3)
    check(activity(groups_of(model, inputs[:2]), inputs)["0"], rows, rows)


def test_dead_constant_and_twin_units():
    model = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)).requires_grad_(False)
    model[0].weight.copy_(torch.tensor([[0.0, 0], [0, 0], [1, 0], [-3, 0], [0, 1]]))
    model[0].bias.copy_(torch.tensor([-1.0, 0.3, 10, 50, 10]))
    inputs = torch.randn(100, 2)
    found = activity(groups_of(model, inputs[:2]), inputs.split(17))["0"]
    assert found.zeros.tolist() == [1, 0, 0, 0, 0]
    assert found.variance[:2].tolist() == [0, 0]
    assert (found.correlation[:2] == 0).all()
    assert (found.correlation[:, :2] == 0).all()
    assert found.correlation.diagonal().tolist() == [0, 0, 1, 1, 1]
    assert float(found.correlation[2, 3]) == pytest.approx(-1)
    r = np.corrcoef(inputs[:, 0].numpy(), inputs[:, 1].numpy())[0, 1]
    np.testing.assert_allclose(found.irreplaceable, [0, 0, 0, 0, 1 - r**2], atol=1e-6)


def test_what_is_left_when_the_best_other_unit_stands_in():
    model, inputs, _ = made("2 hidden")
    found = activity(groups_of(model, inputs[:2]), inputs)["0"]
    values = model[:2](inputs).numpy()
    for unit in range(8):
        left = []
        for other in range(8):
            fit = np.polyfit(values[:, other], values[:, unit], 1)
            left.append(np.var(values[:, unit] - np.polyval(fit, values[:, other])) / np.var(values[:, unit]))
        left[unit] = np.inf
        assert float(found.irreplaceable[unit]) == pytest.approx(min(left), rel=1e-9)


def test_units_that_are_off_are_constantly_zero():
    model, inputs, _ = made("2 hidden")
    kept = {"0": torch.tensor([False, *[True] * 7])}
    found = activity(groups_of(model, inputs[:2]), inputs, kept=kept)
    assert found["0"].zeros[0] == 1
    assert found["0"].mean[0] == found["0"].variance[0] == 0
    assert (found["0"].correlation[0] == 0).all()
    values = model[:2](inputs)
    values[:, 0] = 0
    np.testing.assert_allclose(found["2"].mean, model[2:4](values).numpy().mean(0))


def test_large_means_cost_no_digits():
    values = np.random.default_rng(0).normal(size=(1000, 3)) + 1e8
    moments = Moments(1, 3, pairs=True)
    for part in np.array_split(values, 7):
        moments.add(torch.from_numpy(part).unsqueeze(0))
    np.testing.assert_allclose(moments.variance[0], values.var(0), rtol=1e-7)
    np.testing.assert_allclose(moments.correlation[0], np.corrcoef(values.T), atol=1e-7)


class Functions(nn.Module):
    """Activation, pooling and flatten as functions; the norm behind the activation makes zeros others."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.hidden, self.last = nn.Linear(36, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = F.max_pool2d(self.norm(F.relu(self.conv(x))), 2).flatten(1)
        return self.last(F.dropout(torch.relu_(self.hidden(x)), training=self.training))


def test_zeros_are_counted_behind_activations_that_are_functions_before_norms_and_pooling():
    torch.manual_seed(0)
    model, inputs = Functions().double().eval().requires_grad_(False), torch.randn(20, 1, 8, 8).double()
    model.norm.bias.fill_(0.5)
    found = activity(groups_of(model, inputs[:2]), inputs.split(9))
    active = F.relu(model.conv(inputs))
    pooled = F.max_pool2d(model.norm(active), 2)
    hidden = F.relu(model.hidden(pooled.flatten(1)))

    def rows(x):
        return np.moveaxis(x.numpy(), 1, -1).reshape(-1, x.shape[1])

    check(found["conv"], rows(pooled), rows(active))
    check(found["hidden"], hidden.numpy(), hidden.numpy())
    assert found["conv"].zeros.min() > 0


class Averaged(nn.Module):
    """Activation and mean over positions; the mean has no zeros where the activation has some."""

    def __init__(self, average):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
        self.average = average

    def forward(self, x):
        return self.last(self.average(F.relu(self.conv(x))))


@pytest.mark.parametrize(
    "average",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(-1).mean(-1),
        lambda x: F.max_pool2d(x, 2).mean((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
    ],
)
def test_zeros_are_counted_at_the_activation_before_any_mean_over_positions(average):
    torch.manual_seed(0)
    model, inputs = Averaged(average).double().eval().requires_grad_(False), torch.randn(20, 1, 8, 8).double()
    found = activity(groups_of(model, inputs[:2]), inputs.split(9))
    active = F.relu(model.conv(inputs))
    expected = (active == 0).double().mean((0, 2, 3)).numpy()
    assert np.allclose(found["conv"].zeros, expected, rtol=1e-12)
    assert expected.min() > 0
