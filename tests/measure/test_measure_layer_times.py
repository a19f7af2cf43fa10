"""Time by kinds of layers, of layers that sleep."""

import time

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.measure import layer_times


class Sleeping(nn.Module):
    """A layer that takes two milliseconds."""

    def forward(self, x):
        time.sleep(0.002)
        return x


class Slower(nn.Module):
    """A network that sleeps five milliseconds outside of its layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = Sleeping(), nn.Sequential(Sleeping()), nn.Linear(3, 2)

    def forward(self, x):
        time.sleep(0.005)
        assert not self.training
        return self.fc(self.second(self.first(x)))


def test_each_kind_has_its_time():
    net = Slower()
    found = layer_times(net, torch.zeros(1, 3), runs=5, warmup=1)
    assert list(found) == ["Sleeping", "Linear", "other"]
    assert found["Sleeping"] >= 0.004
    assert found["other"] >= 0.005
    assert found["Linear"] < 0.004
    assert net.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_numbers_out_of_range():
    with pytest.raises(InputError, match="runs"):
        layer_times(nn.Linear(3, 2), torch.zeros(1, 3), runs=0)
    with pytest.raises(InputError, match="batch"):
        layer_times(nn.Linear(3, 2), torch.zeros(0, 3))
