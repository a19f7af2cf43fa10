"""latency with a clock of the test's own: nothing here depends on how fast the machine is."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.measure import latency

# The package exports the function under the name of its module.
module = importlib.import_module("prunekit.measure.latency")


class Clocked(nn.Module):
    """Each pass takes the next duration of a list, on a clock that only this module moves."""

    def __init__(self, durations):
        super().__init__()
        self.durations = iter(durations)
        self.now = 0.0
        self.seen = []

    def forward(self, x):
        self.now += next(self.durations)
        self.seen.append((self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()))
        return x


def test_statistics_of_the_timed_runs(monkeypatch):
    timed = np.random.default_rng(0).exponential(size=21)
    model = Clocked([100.0, 200.0, *timed])
    monkeypatch.setattr(module, "perf_counter", lambda: model.now)
    found = latency(model, torch.zeros(3, 2), warmup=2, runs=21)
    assert found.median == pytest.approx(np.median(timed))
    assert found.mean == pytest.approx(timed.mean())
    assert found.p10 == pytest.approx(np.sort(timed)[2])
    assert found.p90 == pytest.approx(np.sort(timed)[18])
    assert (found.min, found.max) == (pytest.approx(timed.min()), pytest.approx(timed.max()))
    assert (found.runs, found.threads, found.batch) == (21, 1, 3)


def test_modes_and_threads_are_set_and_put_back():
    before = torch.get_num_threads()
    model = Clocked([0.0] * 5)
    found = latency(model, (torch.zeros(1, 2),), warmup=1, runs=3, threads=2)
    assert model.seen == [(False, True, 2)] * 4
    assert found.threads == 2
    assert model.training
    assert torch.get_num_threads() == before


def test_threads_are_put_back_when_the_model_fails():
    before = torch.get_num_threads()
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        latency(model, torch.zeros(1, 4), threads=before + 1)
    assert torch.get_num_threads() == before
    assert model.training


def test_real_clock():
    found = latency(nn.Linear(3, 2), torch.zeros(1, 3), warmup=0, runs=5)
    assert 0 < found.min <= found.p10 <= found.median <= found.p90 <= found.max
    assert found.min <= found.mean <= found.max


@pytest.mark.parametrize("wrong", [{"warmup": -1}, {"runs": 0}, {"threads": 0}])
def test_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        latency(nn.Linear(3, 2), torch.zeros(1, 3), **wrong)
