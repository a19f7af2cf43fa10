"""Networks that draw random numbers in training shrink: the smaller one gets those of the units that stay."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunekit.graph import prune_groups, shrink
from prunekit.graph.draws import Draws
from prunekit.graph.plan import traced


class Noisy(nn.Module):
    def __init__(self, noise):
        super().__init__()
        self.noise = noise
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 3)

    def forward(self, x):
        h = torch.relu(self.a(x))
        return self.b(self.noise(h) if self.training else h)


NOISES = {
    "of a normal distribution": lambda h: h + 0.1 * torch.randn_like(h),
    "made of sizes": lambda h: h + 0.1 * torch.randn(h.shape),
    "of an equal distribution": lambda h: h * torch.rand_like(h),
    "a mask": lambda h: h * torch.bernoulli(torch.full_like(h, 0.9)),
    "a mask compared": lambda h: h * (torch.rand_like(h) < 0.9),
    "a mask written in place": lambda h: h * torch.empty_like(h).bernoulli_(0.9) / 0.9,
    "one for all units": lambda h: h * h.new_empty(len(h), 1).bernoulli_(0.8),
    "several": lambda h: (
        torch.randn_like(h.mean(1, keepdim=True)) * h + torch.randn_like(h) + torch.randn_like(h)
    ),
    "written over zeros": lambda h: h + torch.zeros_like(h).uniform_(-1, 1),
    "normal in place": lambda h: h * torch.empty_like(h).normal_(1, 0.1),
    "exponential": lambda h: h * torch.empty_like(h).exponential_(),
}


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_hidden_units(name):
    model, inputs = Noisy(NOISES[name]), torch.randn(5, 6)
    before = copy.deepcopy(model)
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules"
    stays = result.axes["a.weight"][0]
    assert int(stays.sum()) == 12
    # the definition: the mean output of many draws is that of the network whose removed columns are zero
    before.b.weight.data[:, ~stays] = 0
    torch.testing.assert_close(model.eval()(inputs), before.eval()(inputs))


def test_noise_in_evaluation_mode_is_that_of_the_whole_network():
    class Always(Noisy):
        def forward(self, x):
            return self.b(self.noise(torch.relu(self.a(x))))

    assert prune_groups(Always(NOISES["several"]), torch.randn(5, 6), 0.5).form == "modules"


def test_the_numbers_of_what_stays_are_given_again():
    model, inputs = Noisy(NOISES["several"]), torch.randn(4, 6)
    found = traced(model, inputs)
    draws = Draws(found.graphs[1], 1, found.keeping({"a": [0, 5, 23]}))
    stays = torch.ones(24, dtype=torch.bool)
    stays[[0, 5, 23]] = False
    with draws:
        first = [torch.randn_like(torch.empty(size)) for size in ((4, 1), (4, 24), (4, 24))]
    with draws.again():
        again = [torch.randn_like(torch.empty(size)) for size in ((4, 1), (4, 21), (4, 21))]
    for one, other in zip(first, again, strict=True):
        expected = one if one.shape[1] == 1 else one[:, stays]
        assert torch.equal(other, expected)


class Attention(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.heads = kind, 4
        self.into, self.out = nn.Linear(6, 32), nn.Linear(32, 3)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))

    def forward(self, x):
        x = self.into(x)
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        rate = 0.1 if self.training else 0.0
        if self.kind == "one call":
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        else:
            y = F.dropout((q @ k.transpose(-1, -2) / 8**0.5).softmax(-1), rate, self.training) @ v
        return self.out(x + self.o(y.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("kind", ["one call", "step by step"])
def test_dropout_of_shares_of_heads(kind):
    result = prune_groups(Attention(kind), torch.randn(2, 5, 6), 0.5, kinds=["heads"])
    assert result.form == "modules"
    assert result.model.q.out_features == 16


def test_dropout_in_pytorchs_own_layers():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    assert layer.dropout.p == 0.1
    model = nn.Sequential(nn.Linear(6, 32), layer, nn.Linear(32, 3))
    result = prune_groups(model, torch.randn(2, 5, 6), 0.5, form="graph")  # its own code needs the heads
    assert result.parameters_after < 0.6 * result.parameters_before


def test_a_network_that_drops_whole_branches():
    class Paths(nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 16)
            self.out = nn.Linear(16, 3)

        def forward(self, x):
            x = self.into(x)
            y = self.b(torch.relu(self.a(x)))
            if self.training:
                y = y * x.new_empty(len(x), 1).bernoulli_(0.8) / 0.8
            return self.out(x + y)

    flags = torch.arange(24) % 2 == 0
    result = shrink(Paths(), torch.randn(4, 6), {"a": flags})
    assert result.form == "modules"
    assert result.model.a.out_features == 12
