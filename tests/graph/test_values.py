"""Networks that ask for values: recorded with what constants and checks need, and along every way they go."""

import copy

import pytest
import torch
from torch import nn

from prunekit.errors import ModelError
from prunekit.graph import VerificationError, groups, prune_groups, shrink
from prunekit.graph.capture import captured
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.other_inputs import variations

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LENGTHS = (torch.randn(2, 5, 6, dtype=torch.float64), torch.tensor([3, 5]))


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 24), nn.Linear(24, 3)
        self.register_buffer("t", torch.tensor(2.0))


class Constant(Layers):
    def forward(self, x):
        mask = torch.triu(torch.full((3, 3), 1.0), 1)
        return self.b(torch.relu(self.a(x))) * (2 if (mask == mask.T).all() else mask.sum().item())


class OfPlainNumbers(Layers):
    def forward(self, x):
        count = torch.div(len(x), 3, rounding_mode="trunc")
        return self.b(torch.relu(self.a(x))) * (count if count > 1 else int(count) + 1)


class Buffer(Layers):
    def forward(self, x):
        return self.b(torch.relu(self.a(x)) / float(self.t))


class Check(Layers):
    def forward(self, x):
        if torch.isnan(x).any():
            raise ValueError("not a number")
        return self.b(torch.relu(self.a(x)))


class Assertion(Layers):
    def forward(self, x):
        hidden = torch.relu(self.a(x))
        assert hidden.sum() != 12345
        return self.b(hidden)


class Longest(Layers):
    def forward(self, x, lengths):
        mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
        return self.b(torch.relu(self.a(x))) * mask[..., None]


class Numbers(Layers):
    def forward(self, x):
        hidden = torch.relu(self.a(x))
        assert hidden.detach().cpu().numpy().min() >= 0
        return self.b(hidden) * len(x[:, 0].tolist())


class Written(Layers):
    def forward(self, x):
        mask = torch.zeros(4, 1)
        mask[0] = x[0, 0]
        return self.b(torch.relu(self.a(x))) * (2.0 if mask.sum() > 100 else 1.0)


TAKEN = {
    Constant: (X, False, False),
    OfPlainNumbers: (X, False, False),
    Buffer: (X, False, True),
    Check: (X, True, False),
    Assertion: (X, True, True),
    Longest: (LENGTHS, True, False),
    Numbers: (X, True, True),
    Written: (X, True, False),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_half_of_the_units_go(kind):
    inputs, _, _ = TAKEN[kind]
    model = kind()
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules"
    assert model.a.out_features == 12


@pytest.mark.parametrize("kind", TAKEN)
def test_what_the_values_come_from(kind):
    inputs, data, state = TAKEN[kind]
    (graph,) = captured(kind(), inputs, decided=True)
    assert (bool(graph.by_data), bool(graph.by_state)) == (data, state)
    for line in graph.by_data + graph.by_state:
        assert "of test_values.py: " in line


@pytest.mark.parametrize("kind", TAKEN)
def test_the_graph_computes_what_the_network_computes_on_these_inputs(kind):
    inputs, _, _ = TAKEN[kind]
    model = kind()
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    graph = GraphModel(copy.deepcopy(model), captured(model, inputs, decided=True))
    assert torch.equal(graph(*args), model(*args))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Branching(nn.Module):
    """Two layers, of which the values say which is taken, or how they meet."""

    def __init__(self):
        super().__init__()
        self.first, self.left, self.right = nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        h = self.first(x)
        h = self.left(h) if x[0, 0] > 0 else self.right(h)
        return self.last(h.relu())


def test_all_ways_that_values_lead_to_are_coupled():
    model, inputs = Branching(), X.clone()
    inputs[0, 0] = 5.0
    (plan,) = [group for group in groups(model, inputs).groups if group.name == "left"]
    assert {member.tensor for member in plan.members} >= {"left.weight", "right.weight", "last.weight"}
    flags = torch.arange(12) % 2 == 0
    before = copy.deepcopy(model)
    shrink(model, inputs, {"left": flags})
    for layer in (before.left, before.right):
        layer.weight.data[~flags] = layer.bias.data[~flags] = 0
    for sign in (5.0, -5.0):
        inputs[0, 0] = sign
        torch.testing.assert_close(model(inputs), before(inputs))


def test_a_way_that_no_input_reached_is_refused_by_its_line():
    class Rare(Branching):
        def forward(self, x):
            h = self.first(x)
            h = self.left(h) if x[0, 0] < 1e6 else self.right(h)
            return self.last(h.relu())

    with pytest.raises(
        ModelError, match=r"line \d+ of test_values\.py: h = .*right\.weight is not reached"
    ) as error:
        groups(Rare(), X)
    assert "\n" not in str(error.value)


def test_no_graph_takes_the_place_of_code_that_values_decide():
    class Sized(Check):
        def forward(self, x):
            if torch.isnan(x).any():
                raise ValueError("not a number")
            return self.b(torch.relu(self.a(x)).view(4, 24))

    with pytest.raises(VerificationError, match="since values of the inputs decide") as error:
        prune_groups(Sized(), X, 0.5)
    assert "no graph can take the place of its code" in str(error.value)


def test_a_state_that_the_network_itself_changes_is_refused():
    class First(Layers):
        def forward(self, x):
            if self.t == 2:
                self.t.fill_(3)
                return self.b(self.a(x))
            return self.b(torch.relu(self.a(x)))

    with pytest.raises(ModelError, match=r"test_values\.py"):
        groups(First(), X)


class Experts(nn.Module):
    """Each row goes to the expert that scores highest, as in mixtures of experts."""

    def __init__(self, count=3, hidden=16):
        super().__init__()
        self.router = nn.Linear(6, count)
        self.up = nn.ModuleList(nn.Linear(6, hidden) for _ in range(count))
        self.down = nn.ModuleList(nn.Linear(hidden, 6) for _ in range(count))
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        shares, choice = self.router(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for number in choice.unique():
            (rows,) = torch.where(choice == number)
            y = self.down[number](torch.relu(self.up[number](x[rows])))
            out.index_add_(0, rows, y * shares[rows, None])
        return self.last(out)


def test_experts_lose_their_hidden_units():
    torch.manual_seed(0)
    model, inputs = Experts(), torch.randn(32, 6)
    model.router.weight.data *= 10  # so that each is somebody's first
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules"
    assert [layer.out_features for layer in model.up] == [8, 8, 8]
    assert model.router.out_features == 3


class Normed(Branching):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        h = self.first(x)
        h = self.left(h) if x[0, 0] > self.bound else self.right(h)
        return self.last(self.norm(h))


def test_statistics_over_units_stay_where_other_data_lead_elsewhere():
    model = Normed()
    model.bound = 0
    frozen = groups(model, X).frozen
    assert "statistics run over it, and values of the inputs decide" in frozen["right"]


def test_statistics_over_units_where_data_are_only_looked_at():
    class Checked(Layers):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(24)

        def forward(self, x):
            assert x.sum() != 12345
            return self.b(self.norm(self.a(x)))

    result = prune_groups(Checked(), X, 0.5)
    assert result.form == "modules"
    assert result.model.norm.normalized_shape == (12,)


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ((X,), 2),  # negated and drawn; shuffled real numbers are those that are drawn
        ((torch.arange(24).view(4, 6),), 2),  # drawn and shuffled
        (LENGTHS, 3),
        ((torch.ones(4, dtype=torch.bool),), 0),
    ],
    ids=["real numbers", "integers", "both", "flags"],
)
def test_no_inputs_are_tried_twice(given, count):
    found = variations((given, {}))
    assert len(found) == count
    every = [torch.cat([each.flatten().double() for each in args]) for args, _ in [(given, {}), *found]]
    assert len({tuple(values.tolist()) for values in every}) == count + 1
