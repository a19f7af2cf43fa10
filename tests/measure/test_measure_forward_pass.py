"""Latency with a clock of the test's own, and peak_memory against chains followed by hand (4 bytes)."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunekit import models
from prunekit.errors import InputError
from prunekit.measure import forward_pass, latency, peak_memory


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
    monkeypatch.setattr(forward_pass, "perf_counter", lambda: model.now)
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
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        latency(nn.Linear(3, 2), torch.zeros(1, 3), **wrong)


def test_a_chain_holds_two_neighbours():
    chain = nn.Sequential(nn.Linear(8, 100), nn.Linear(100, 30), nn.Linear(30, 50), nn.Linear(50, 60))
    # Batch 2: 100 + 30 floats per example, 30 + 50, then 50 + 60; weights and input are not in it.
    assert peak_memory(chain, torch.zeros(2, 8)) == 2 * 4 * 130


def test_in_place_and_views_allocate_nothing():
    apart = nn.Sequential(nn.Linear(8, 100), nn.ReLU(), nn.Linear(100, 10))
    in_place = nn.Sequential(nn.Linear(8, 100), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(100, 10))
    assert peak_memory(apart, torch.zeros(2, 8)) == 2 * 4 * 200
    assert peak_memory(in_place, torch.zeros(2, 8)) == 2 * 4 * 110
    assert peak_memory(nn.Flatten(), torch.zeros(2, 8, 3)) == 0


class Skip(nn.Module):
    def forward(self, x):
        y = x + 1  # 1 live
        z = y + 1  # 2
        z = z + 1  # 3 at the moment of the addition, then 2
        return y + z  # 3


class Forgetful(nn.Module):
    def forward(self, x):
        for _ in range(10):
            x = x + 1
        return x


def test_what_is_still_referred_to_counts():
    x = torch.zeros(5, 10)
    assert peak_memory(Skip(), x) == 3 * 200
    assert peak_memory(Forgetful(), x) == 2 * 200


class Constant(nn.Module):
    """Makes a tensor of its own, and a view of one that was there before."""

    def __init__(self):
        super().__init__()
        self.before = torch.zeros(1000)  # no parameter, no buffer

    def forward(self, x):
        return x + torch.zeros(10) + self.before.view(100, 10)[0]


def test_own_tensors_count_and_those_from_before_do_not():
    # zeros(10) and the first sum; then both sums: zeros(10) is gone by then.
    assert peak_memory(Constant(), torch.zeros(10)) == 2 * 40


class MathAttention(nn.Module):
    def forward(self, x):
        scores = F.softmax(x @ x.transpose(1, 2), dim=-1)
        return torch.einsum("bij,bjk->bik", scores, x)


def test_the_insides_of_composite_operations_count():
    # 50 x 50 scores and their softmax, live together.
    assert peak_memory(MathAttention(), torch.zeros(1, 50, 2)) == 2 * 50 * 50 * 4


def test_the_same_each_time_and_proportional_to_the_batch():
    net = models.create("resnet20", (3, 16, 16), 10, seed=0)
    net.train()
    found = {peak_memory(net, torch.randn(2, 3, 16, 16)) for _ in range(3)}
    # Second block of stage 1: the stage's input, the block's, its first half, and the last two of a chain.
    assert found == {5 * 2 * 16 * 16 * 16 * 4}
    assert peak_memory(net, torch.randn(4, 3, 16, 16)) == 2 * found.pop()
    assert net.training


def test_gradients_are_not_kept():
    deep = nn.Sequential(*(nn.Linear(10, 10) for _ in range(20)))
    assert peak_memory(deep, torch.zeros(1, 10, requires_grad=True)) == 2 * 40


def test_what_is_no_batch_is_refused():
    with pytest.raises(InputError):
        peak_memory(nn.Linear(3, 2), [])
