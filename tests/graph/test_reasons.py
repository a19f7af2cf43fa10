"""What stays and what is refused says why, in one line, with the place in the network's own code."""

import inspect

import pytest
import torch
from torch import nn

from prunekit.errors import ModelError
from prunekit.graph import groups, propagate, prune_groups

X = torch.randn(4, 6, dtype=torch.float64)


class Sorted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.a(x).sort(-1).values)


@pytest.mark.parametrize("record", [True, False])
def test_a_reason_names_the_line(record, monkeypatch):
    if not record:
        from prunekit.graph import plan

        whole = plan.captured
        monkeypatch.setattr(plan, "captured", lambda *args, **named: whole(*args, record=False, **named))
    lines, first = inspect.getsourcelines(Sorted.forward)
    place = first + next(number for number, line in enumerate(lines) if "sort" in line)
    assert f"at 'sort' (test_reasons.py:{place})" in groups(Sorted(), X).frozen["a"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
            "the module '0' is lazy .* run the model once",
        ),
        (
            lambda: nn.Sequential(nn.Linear(6, 8), torch.jit.script(nn.Linear(8, 3))),
            "the module '1' is scripted .* made from",
        ),
        (lambda: torch.jit.script(nn.Linear(6, 8)), "the model is scripted"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_modules_that_cannot_be_read_are_named(make, message):
    with pytest.raises(ModelError, match=message):
        groups(make(), X)


def test_weights_that_are_no_numbers_are_named():
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))
    model[0].weight.data[2, 1] = torch.nan
    with pytest.raises(ModelError, match=r"0\.weight has weights that are no finite numbers"):
        prune_groups(model, X, 0.5)


class Table(nn.Module):
    """A table laid out as one axis, of which neither axis can change, as in relative position biases."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.table = nn.Linear(6, 16), nn.Linear(16, 16), nn.Parameter(torch.randn(4, 6))
        self.register_buffer("index", torch.arange(16))

    def forward(self, x):
        return self.b(torch.relu(self.a(x))) + self.table.view(-1)[self.index]


class Standardised(nn.Conv2d):
    def forward(self, x):
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = nn.functional.batch_norm(rows, None, None, training=True, momentum=0.0, eps=1e-6)
        return nn.functional.conv2d(x, weight.reshape_as(self.weight), self.bias)


@pytest.mark.parametrize(
    ("make", "inputs", "most"),
    [
        (Table, X, 3),
        (
            lambda: nn.Sequential(
                Standardised(3, 8, 3), nn.ReLU(), Standardised(8, 8, 3), nn.Conv2d(8, 3, 1)
            ),
            torch.randn(2, 3, 8, 8, dtype=torch.float64),
            6,
        ),
    ],
)
def test_the_analysis_ends_where_nothing_new_is_to_blame(make, inputs, most, monkeypatch):
    rounds = []
    whole = propagate._propagated
    monkeypatch.setattr(propagate, "_propagated", lambda *args: rounds.append(args) or whole(*args))
    groups(make(), inputs)
    assert len(rounds) <= most
