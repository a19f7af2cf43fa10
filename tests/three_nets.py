"""Three networks in float64 with data: perceptron, convolutions, shortcut; and a score of their weights."""

import pytest
import torch
from torch import nn

from prunekit.batches import TensorBatches
from prunekit.parts.context import StepContext
from prunekit.statistics import StatContext, collect
from prunekit.task import Task
from small_nets import blobs, convnet, mlp

TIGHT = {"rtol": 1e-10, "atol": 0}


def perceptron():
    return mlp(10, 7, 5, 3, dtype=torch.float64), blobs(40, dtype=torch.float64)


def convolutions():
    model = convnet().double()
    model[1].running_mean.uniform_(-0.5, 0.5)
    model[1].running_var.uniform_(0.5, 2)
    return model, (torch.randn(24, 4, 6, 6, dtype=torch.float64), torch.randint(3, (24,)))


class Residual(nn.Module):
    """Convolutions with a shortcut, strides and batch norms, as in ResNet-20."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.down, self.head = nn.Conv2d(4, 6, 3, stride=2), nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(torch.relu(self.down(x)).mean((2, 3)))


def residual():
    torch.manual_seed(3)
    model = Residual().double()
    return model, (torch.randn(12, 3, 8, 8, dtype=torch.float64), torch.randint(5, (12,)))


NETWORKS = pytest.mark.parametrize("network", [perceptron, convolutions, residual])


def names_of(model):
    return [name for name, value in model.named_parameters() if value.dim() > 1]


def scored(score, model, data, size=7):
    """By parameter; the data in uneven batches."""
    names = names_of(model)
    batches = TensorBatches(*data).sample(10_000, size, seed=0)
    found = collect(StatContext(model, names), batches, score.needs, task=Task(nn.functional.cross_entropy))
    weights = {name: model.get_parameter(name).detach() for name in names}
    return score(StepContext(weights, statistics=found, model=model))


def assert_same(found, expected, scale=None):
    assert list(found) == list(expected)
    for name, value in found.items():
        most = float(expected[name].detach().abs().max())
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12 * most)
