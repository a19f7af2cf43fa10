"""The rounds of research/lottery.py, by NumPy and by what is handed to the training."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from prunekit.data import DataSettings, load
from prunekit.models import create
from prunekit.training import Trained


@pytest.fixture
def lottery(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).resolve().parents[1]), *sys.path])
    module = importlib.import_module("lottery")
    monkeypatch.setattr(module, "EVERY", 1)
    return module


@pytest.fixture(scope="module")
def data():
    return load(DataSettings(name="digits", limit=60))


def setup_of(lottery, **chains):
    rates = {"fc1": 0.1, "fc2": 0.2, "fc3": 0.1}
    made = {label: lottery.Chain(rates, **settings) for label, settings in chains.items()}
    return lottery.Setup("lenet_300_100", {}, 4, made)


def test_each_layer_keeps_its_own_share_and_nothing_comes_back(lottery):
    chain = lottery.SETUPS["conv"].chains["ticket"]
    model = create("lenet5", (1, 28, 28), 10, seed=0)
    before = {f"{layer}.weight": None for layer in chain.rates}
    for rounds in chain.rounds:
        masks = lottery.masks_of(model, "magnitude", chain, rounds, seed=0)
        for layer, rate in chain.rates.items():
            name = f"{layer}.weight"
            values = model.get_parameter(name).detach().abs().numpy()
            removed = round((1 - (1 - rate) ** rounds) * values.size)
            lowest = np.sort(values, axis=None)[removed]
            assert np.array_equal(masks[name].numpy(), values >= lowest)
            assert before[name] is None or not (masks[name] & ~before[name]).any()
            before[name] = masks[name]
        for parameter in model.parameters():  # as if a training had changed what is kept
            parameter.data.mul_(torch.rand_like(parameter).add_(0.5))
        masks.apply(model)
    assert {name: float(mask.float().mean()) for name, mask in before.items()} == pytest.approx(
        {"conv1.weight": 0.9**8, "conv2.weight": 0.9**8, "fc1.weight": 0.8**8, "fc2.weight": 0.9**8},
        abs=1e-3,
    )


def test_a_ticket_starts_from_its_initial_values_and_its_controls_get_its_masks_and_batches(
    lottery, data, monkeypatch
):
    begun = []

    def train(model, data, training, *, seed, masks, checkpoints, on_checkpoint):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        begun.append(SimpleNamespace(state=state, masks=masks, seed=seed, regularize=training.regularize))
        for parameter in model.parameters():
            parameter.data.add_(torch.randn_like(parameter) * 0.1)
        masks.apply(model)
        for step in checkpoints:
            on_checkpoint(step, model.state_dict())
        return Trained(4, 0.0)

    monkeypatch.setattr(lottery, "train", train)
    setup = setup_of(
        lottery,
        ticket={"rounds": range(1, 3), "controls": (2,)},
        other={"rounds": range(2, 3), "dropout": True},
    )
    rows = list(lottery.rows(setup, data, seed=5))
    assert [(row["method"], row["step"], row["draw"]) for row in rows] == [
        ("dense", 0, 0),
        ("ticket", 1, 0),
        ("ticket", 2, 0),
        ("random mask", 2, 0),
        *(("new values", 2, draw) for draw in range(3)),
        ("dense, dropout", 0, 0),
        ("other", 2, 0),
    ]
    initial = create("lenet_300_100", data.input_shape, data.outputs, seed=5).state_dict()
    for run, row in zip(begun, rows, strict=True):
        from_initial = {
            name: torch.where(run.masks[name], value, 0.0) if name in run.masks else value
            for name, value in initial.items()
        }
        same = all(torch.equal(run.state[name], value) for name, value in from_initial.items())
        assert same == (row["method"] != "new values")
        assert bool(run.regularize) == (row["method"] in ("dense, dropout", "other"))
        assert row["kept"] == run.masks.kept
    ticket, at_random, *drawn = begun[2:7]
    assert len({run.seed for run in begun[2:7]}) == 1
    assert begun[1].seed != ticket.seed
    assert all(run.masks == ticket.masks for run in drawn)
    assert at_random.masks != ticket.masks
    assert at_random.masks.kept == ticket.masks.kept
    assert len({float(run.state["fc1.weight"].sum()) for run in drawn}) == 3


def test_the_steps_that_a_row_names_by_hand(lottery, data, monkeypatch):
    """Losses 5, 3, 3, 4: the least is first at step 2, 3.5 is reached there, and 2 never."""
    model = create("lenet_300_100", data.input_shape, data.outputs, seed=0)
    chain = setup_of(lottery, ticket={"rounds": range(1, 2)}).chains["ticket"]
    masks = lottery.masks_of(model, "magnitude", chain, 1, seed=0)
    training = lottery.Training(iterations=4, batch_size=20)
    states = []

    def quality(model, part):
        value = float(model.get_parameter("fc1.weight").detach().double().sum())
        if part is data.validation and len(states) < 4:
            states.append(value)
            return SimpleNamespace(loss=[5.0, 3.0, 3.0, 4.0][len(states) - 1], accuracy=value)
        return SimpleNamespace(loss=9.0, accuracy=value)

    monkeypatch.setattr(lottery, "quality", quality)
    for goal, reached in ((3.5, 2), (2.0, ""), (None, 2)):
        states.clear()
        found = lottery.trained(model, data, training, masks, 0, goal)
        assert (found["best_step"], found["goal_step"], found["validation_loss"]) == (2, reached, 3.0)
        assert found["test_accuracy"] == found["validation_accuracy"] == states[1]
        assert (found["last_validation_loss"], found["last_test_accuracy"]) == (4.0, states[3])
        assert len(set(states)) == 4


def test_all_trainings_of_a_setup_run(lottery, data):
    rows = list(lottery.rows(setup_of(lottery, ticket={"rounds": range(1, 2), "dropout": True}), data, 0))
    assert [row["method"] for row in rows] == ["dense, dropout", "ticket"]
    assert all(0 <= row["test_accuracy"] <= 1 and row["best_step"] in range(1, 5) for row in rows)
