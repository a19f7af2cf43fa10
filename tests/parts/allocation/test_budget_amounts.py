"""Budgets of an amount, against costs that are counted by hand: 13 MACs and 14 parameters for each unit."""

import copy

import pytest
import torch

from prunekit.errors import InputError
from prunekit.parts.allocation import Budget
from prunekit.parts.quantize import BitAllocation
from prunekit.plain_yaml import with_assignments
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import copied, mlp, same

DATA = torch.rand(8, 10), torch.arange(8) % 3
# 10 x 12 and 12 x 3 weights, 12 and 3 biases: w units are 13 w MACs and 14 w + 3 parameters


def recipe(at_most, steps=1, **budget):
    return Recipe.parse(
        {
            "score": "magnitude",
            "granularity": "unit",
            "allocation": {"name": "budget", "at_most": at_most, **budget},
            "schedule": {"name": "allocation_decides", "steps": steps},
        }
    )


def pruned(*args, **settings):
    return prune(mlp(10, 12, 3), recipe(*args, **settings), DATA)


@pytest.mark.parametrize(
    ("at_most", "width", "asked", "reached", "shown"),
    [
        ("100 MACs", 7, 100, 91, "91 MACs left, at most 100 MACs asked"),
        ("0.1 kMACs", 7, 100, 91, "91 MACs left, at most 100 MACs asked"),
        ("91 MACs", 7, 91, 91, "91 MACs left, at most 91 MACs asked"),
        ("90.9 MACs", 6, 90.9, 78, "78 MACs left, at most 90.9 MACs asked"),
        ("0.1 K parameters", 6, 100, 87, "87 parameters left, at most 100 parameters asked"),
        ("400 B", 6, 400, 348, "348 B left, at most 400 B asked"),
        ("1 GMACs", 12, 1e9, 156, "156 MACs left, at most 1.00 G MACs asked"),
    ],
)
def test_the_most_units_that_are_within_it_stay(at_most, width, asked, reached, shown):
    found = pruned(at_most)
    assert found.kept.kept == width
    assert found.history[-1].asked == pytest.approx(asked, rel=1e-12)
    assert found.history[-1].reached == reached
    assert shown in str(found)
    assert str(found).endswith(": the network is as it was.") == (width == 12)


def test_milliseconds_are_those_of_the_network_that_is_left(monkeypatch):
    def clock(model, inputs, **settings):
        return type("Latency", (), {"median": sum(p.numel() for p in model.parameters()) * 1e-4})()

    monkeypatch.setattr("prunekit.parts.allocation.measured.latency", clock)
    found = pruned("10 ms")
    assert found.kept.kept == 6
    assert found.history[-1].reached == pytest.approx(0.0087)
    assert "8.70 ms left, at most 10.0 ms asked" in str(found)


@pytest.mark.parametrize(
    ("ramp", "asked", "widths"),
    [
        ("linear", [130, 104, 78], [10, 8, 6]),
        ("cubic", [156 - 78 * 19 / 27, 156 - 78 * 26 / 27, 78], [7, 6, 6]),
    ],
)
def test_rounds_lead_to_it(ramp, asked, widths):
    history = pruned("78 MACs", steps=3, ramp=ramp).history
    assert [record.asked for record in history] == pytest.approx(asked)
    assert [record.reached for record in history] == [13 * width for width in widths]


def squared_width(model):
    return float(sum(p.shape[0] for p in model.parameters() if p.dim() == 2) - 3) ** 2


def test_a_metric_of_ones_own_is_counted():
    found = pruned(30, of=squared_width)
    assert found.kept.kept == 5
    assert (found.history[-1].asked, found.history[-1].reached) == (30, 25)
    assert "25 squared_width left, at most 30 squared_width asked" in str(found)
    share = {"allocation": Budget(of=squared_width), "schedule": {"name": "one_shot", "sparsity": 0.5}}
    halved = Recipe.parse({**recipe(30, of=squared_width).to_dict(), **share})
    assert prune(mlp(10, 12, 3), halved, DATA).history[-1].reached == 64  # at most 72 of 144


def test_in_yaml_it_is_named_and_must_be_allowed(tmp_path, monkeypatch):
    (tmp_path / "own_costs.py").write_text("def biases(model):\n    return float(model[0].bias.numel())\n")
    monkeypatch.syspath_prepend(tmp_path)
    values = recipe(4, of="parameters").to_dict()
    values["allocation"]["of"] = "own_costs:biases"
    with pytest.raises(InputError, match=r"would import the module own_costs .* --allow own_costs"):
        Recipe.parse(values)
    read = Recipe.parse(values, allow=["own_costs"])
    assert read.to_dict() == values
    assert Recipe.from_yaml(read.to_yaml(), allow=["own_costs"]) == read
    assert prune(mlp(10, 12, 3), read, DATA).kept.kept == 4


def test_the_same_from_a_command_line():
    values = with_assignments(recipe("1 MMACs").to_dict(), ["allocation.at_most=100 MACs"])
    assert Recipe.parse(values) == recipe("100 MACs")
    assert Recipe.from_yaml(recipe("100 MACs").to_yaml()) == recipe("100 MACs")


def test_a_session_that_goes_on_says_what_was_reached():
    model = mlp(10, 12, 3)
    session = Session(model, recipe("78 MACs", steps=3), data=DATA)
    session.advance()
    state = copy.deepcopy(session.state_dict())
    again = Session(copy.deepcopy(model), recipe("78 MACs", steps=3), data=DATA)
    again.load_state_dict(state)
    assert again.history == session.history
    assert [record.reached for record in again.run()] == [104, 78]
    state["history"][0]["reached"] = None
    with pytest.raises(InputError, match="step 1: asked, reached: they are there where"):
        Session(copy.deepcopy(model), recipe("78 MACs", steps=3), data=DATA).load_state_dict(state)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            ("12 MACs",),
            r"a budget of 12 MACs, 0.0769 of 156 MACs, .* has 13 MACs, 0.0833",
        ),
        (("16 parameters",), r"cannot be reached: .* smallest network has 17 parameters"),
        ((0.5, {"of": squared_width}), r"cannot be reached: .* smallest network has 1 squared_width"),
    ],
)
def test_what_cannot_be_reached_is_refused_with_the_least(budget, message):
    model = mlp(10, 12, 3)
    before = copied(model)
    at_most, settings = budget[0], dict(*budget[1:])
    with pytest.raises(InputError, match=message):
        prune(model, recipe(at_most, **settings), DATA)
    assert same(before, copied(model))


def broken(model):
    return float("nan")


def failing(model):
    raise RuntimeError("no meter")


@pytest.mark.parametrize(
    ("of", "message"),
    [(broken, "broken gave nan: a number"), (failing, "failing failed: .*no meter")],
)
def test_a_metric_that_gives_no_number_is_named(of, message):
    with pytest.raises(InputError, match=f"budget: the metric .*{message}"):
        pruned(30, of=of)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"at_most": "5 parsecs"}, "at_most|is no amount"),
        ({"at_most": "5 ms", "of": "bytes"}, "'5 ms' is of latency, but 'of' is bytes"),
        ({"at_most": 5}, "at_most = 5: write its unit, as in '100 MMACs'"),
        ({"at_most": -5, "of": "macs"}, "at_most = -5 must be above 0"),
        ({"at_most": True, "of": "macs"}, "at_most"),
        ({"of": ["macs"]}, "is neither a cost nor a function"),
        ({"ramp": "cubic"}, "'ramp' says how 'at_most' is reached"),
        (
            {"of": "watts"},
            "'watts' is neither a cost nor a function .*parameters, macs, bytes, latency",
        ),
    ],
)
def test_settings_that_are_none_are_refused(budget, message):
    with pytest.raises(InputError, match=message):
        Budget(**budget)


def test_the_schedule_is_left_to_it():
    values = {**recipe("1 MACs").to_dict(), "schedule": {"name": "one_shot", "sparsity": 0.5}}
    with pytest.raises(InputError, match="'budget' decides the amount itself: use the schedule 'all"):
        Recipe.parse(values)


def test_the_bytes_of_few_values_have_a_unit_too():
    assert BitAllocation(bytes="1.5 kB") == BitAllocation(bytes=1500)
    with pytest.raises(InputError, match="bytes: '5 ms' is of latency, not of bytes"):
        BitAllocation(bytes="5 ms")
