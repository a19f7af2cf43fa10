"""Hidden units of recurrent layers go with their rows in all gates, layers and directions."""

import copy

import pytest
import torch
from torch import nn

from prunekit.graph import groups, prune_groups, shrink
from prunekit.graph.plan import traced
from prunekit.graph.surgery import operate, operation

KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
INPUTS = (2, 6, 8)


class Tagger(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        options = {"batch_first": True, **options}
        self.into, self.layer = nn.Linear(8, 7), KINDS[kind](7, 10, **options)
        self.last = nn.Linear(20 if options.get("bidirectional") else 10, 3)

    def forward(self, x):
        return self.last(self.layer(self.into(x))[0])


OPTIONS = [
    {},
    {"num_layers": 2, "dropout": 0.2},
    {"bidirectional": True, "num_layers": 2},
    {"bias": False},
    {"batch_first": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_units_go_and_the_layer_is_pytorchs_own_of_that_size(kind, options):
    model, inputs = Tagger(kind, **options), torch.randn(INPUTS)
    before = copy.deepcopy(model).eval()
    result = prune_groups(model, inputs, 0.5)
    assert result.form == "modules"
    assert (model.layer.input_size, model.layer.hidden_size) == (4, 5)
    # the definition: a unit whose rows and columns are zero is zero at every step
    stays = result.axes["layer.weight_hh_l0"][1]
    gates = len(before.layer.weight_hh_l0) // 10
    features = result.axes["into.weight"][0]
    for name, weight in before.layer.named_parameters():
        rows = weight.data.view(gates, 10, -1)
        rows[:, ~stays] = 0
        if name.startswith("weight_hh"):
            weight.data[:, ~stays] = 0
        elif name.startswith("weight_ih"):
            weight.data[:, ~(features if "_l0" in name else stays.repeat(weight.shape[1] // 10))] = 0
    torch.testing.assert_close(model.eval()(inputs), before(inputs))
    # it is a layer like any other: it moves, trains, copies and takes its own state
    fresh = Tagger(kind, **options)
    fresh.into, fresh.last = copy.deepcopy(model.into), copy.deepcopy(model.last)
    fresh.layer = KINDS[kind](4, 5, **{"batch_first": True, **options})
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh.eval()(inputs), model(inputs))
    copy.deepcopy(model).to(torch.float32)(inputs.float())
    model.train()(inputs).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_cell_in_a_loop():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.last = nn.LSTMCell(8, 10), nn.Linear(10, 3)

        def forward(self, x):
            h = c = x.new_zeros(len(x), self.cell.hidden_size)
            for step in x.unbind(1):
                h, c = self.cell(step, (h, c))
            return self.last(h)

    result = prune_groups(Loop(), torch.randn(INPUTS), 0.5)
    assert result.form == "modules"
    assert result.model.cell.hidden_size == 5


def test_a_packed_sequence():
    class Packed(Tagger):
        def forward(self, x, lengths):
            packed = nn.utils.rnn.pack_padded_sequence(
                self.into(x), lengths, batch_first=True, enforce_sorted=False
            )
            out, _ = nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0], batch_first=True)
            return self.last(out)

    result = prune_groups(Packed("LSTM"), (torch.randn(INPUTS), torch.tensor([3, 6])), 0.5)
    assert result.form == "modules"
    assert result.model.layer.hidden_size == 5


def test_a_projected_layer_stays_with_its_reason():
    model = nn.LSTM(8, 10, proj_size=4, batch_first=True)
    plan = groups(nn.Sequential(nn.Linear(8, 8), model), torch.randn(INPUTS))
    assert "is projected in a recurrent layer" in plan.frozen["0"]


def test_what_fails_leaves_the_layers_own_list_of_weights():
    model, inputs = Tagger("LSTM"), torch.randn(INPUTS)
    expected, weights = model(inputs), list(model.layer._flat_weights)
    found = traced(model, inputs)
    cut = operation(model, found, {"layer": torch.arange(10) > 3}).cut
    with pytest.raises(AttributeError):
        operate(model, type(cut)(cut.tensors, {("layer", "no attribute"): 3}))
    assert all(one is other for one, other in zip(model.layer._flat_weights, weights, strict=True))
    assert torch.equal(model(inputs), expected)
    shrink(model, inputs, {"layer": torch.arange(10) > 3})
