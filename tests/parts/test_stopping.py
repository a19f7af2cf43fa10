"""Stopping at an error limit: what is measured, what stays, and what is rolled back bit for bit."""

import pytest
import torch
from torch import nn

from prunekit.errors import DataError, InputError
from prunekit.parts.stopping import ErrorLimit
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import copied, same

TRAINING = {"epochs": 1, "batch_size": 16, "lr": 0.01, "optimizer": "sgd"}
RETRAIN = {"name": "fine_tune", "training": TRAINING}


def examples(count=64, seed=0):
    drawn = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=drawn)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0).long()


def network():
    """Trained well enough that losing units costs something; batch norm has state that is no parameter."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    inputs, targets = examples()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    return model.eval()


def recipe(stop, steps=6, retrain=RETRAIN, **more):
    schedule = {"name": "linear", "sparsity": 0.9, "steps": steps}
    return Recipe.parse({"schedule": schedule, "retrain": retrain, "stop": stop, "calibration": 64, **more})


def limit(**settings):
    return {"name": "error_limit", **settings}


@torch.no_grad()
def loss_of(model, data=None):
    inputs, targets = data or examples()
    return float(nn.functional.cross_entropy(model.eval()(inputs), targets))


@torch.no_grad()
def error_rate_of(model, data=None):
    inputs, targets = data or examples()
    return float((model.eval()(inputs).argmax(1) != targets).double().mean())


def walk(retrain=RETRAIN, measure=loss_of, **more):
    """What each step of the same recipe without a stop leads to: states and errors, the dense ones first."""
    model = network()
    states, errors = [copied(model)], [measure(model)]
    session = Session(model, recipe("none", retrain=retrain, **more), data=examples())
    for _ in session.run():
        states.append(copied(model))
        errors.append(measure(model))
    return states, errors


def middle(errors):
    """A limit that a step in the middle is the first to break."""
    broken = next(k for k in range(2, len(errors)) if errors[k] > max(errors[:k]) + 1e-6)
    return broken, (max(errors[:broken]) + errors[broken]) / 2


@pytest.mark.parametrize("retrain", [RETRAIN, "none"])
@pytest.mark.parametrize("roll_back", [True, False])
def test_the_step_that_breaks_the_limit(retrain, roll_back):
    states, errors = walk(retrain)
    broken, bound = middle(errors)
    model = network()
    pruned = prune(model, recipe(limit(limit=bound, roll_back=roll_back), retrain=retrain), examples())
    last = broken - 1 if roll_back else broken
    assert len(pruned.history) == last
    assert same(copied(model), states[last])
    assert pruned.stopped.step == broken
    assert pruned.stopped.rolled_back == roll_back
    assert pruned.stopped.error == pytest.approx(errors[broken], rel=1e-5)
    assert pruned.stopped.allowed == bound
    for name, mask in pruned.masks.items():
        assert torch.equal(mask, states[last][name] != 0) or last == 0


def test_a_limit_that_holds_changes_nothing():
    states, errors = walk()
    model = network()
    pruned = prune(model, recipe(limit(limit=max(errors) + 1)), examples())
    assert pruned.stopped is None
    assert same(copied(model), states[-1])
    assert len(pruned.history) == 6


def test_an_increase_counts_from_the_error_before_pruning():
    _, errors = walk(measure=error_rate_of)
    broken = next(k for k in range(1, len(errors)) if errors[k] > errors[0])
    model = network()
    pruned = prune(model, recipe(limit(of="error_rate", increase=0.0)), examples())
    assert pruned.stopped.allowed == errors[0]
    assert (pruned.stopped.step, pruned.stopped.error) == (broken, errors[broken])


def test_validation_data_decides_where_it_is_given():
    other = examples(count=40, seed=7)
    _, errors = walk(measure=lambda model: loss_of(model, other))
    broken, bound = middle(errors)
    session = Session(network(), recipe(limit(limit=bound)), data=examples(), validation=other)
    assert len(list(session.run())) == broken - 1
    assert session.stopped.error == pytest.approx(errors[broken], rel=1e-5)
    assert session.done


def test_rolling_back_the_first_step_leaves_the_network_as_it_was():
    model = network()
    before = copied(model)
    pruned = prune(model, recipe(limit(increase=0.0), steps=1, retrain="none"), examples())
    assert (pruned.history, pruned.stopped.step) == ((), 1)
    assert same(before, copied(model))
    assert pruned.masks.sparsity == 0


def test_between_retrainings_nothing_is_measured():
    """Steps 1, 2 | 3, 4 | 5, 6 are judged together, and rolled back together."""
    states, errors = walk(retrain_every=2)
    ends = [errors[k] for k in (0, 2, 4, 6)]
    broken = next(k for k in range(1, 4) if ends[k] > max(ends[:k]) + 1e-6)
    bound = (max(ends[:broken]) + ends[broken]) / 2
    model = network()
    pruned = prune(model, recipe(limit(limit=bound), retrain_every=2), examples())
    assert pruned.stopped.step == 2 * broken
    assert len(pruned.history) == 2 * (broken - 1)
    assert same(copied(model), states[2 * (broken - 1)])


@pytest.mark.parametrize("taken", [1, 2, 3])
@pytest.mark.parametrize("every", [1, 2])
def test_resuming_in_the_middle(taken, every, tmp_path):
    _, errors = walk(retrain_every=every)
    bound = sorted(errors)[-2]
    wanted = recipe(limit(limit=bound), retrain_every=every)
    straight = prune(network(), wanted, examples())
    assert straight.stopped is not None
    first = Session(network(), wanted, data=examples())
    for _, _ in zip(range(taken), first.run(), strict=False):
        pass
    torch.save([first.state_dict(), first.model.state_dict()], tmp_path / "state")
    state, values = torch.load(tmp_path / "state", weights_only=True)
    model = network()
    model.load_state_dict(values)
    second = Session(model, wanted, data=examples())
    second.load_state_dict(state)
    list(second.run())
    assert second.stopped == straight.stopped
    assert same(copied(model), copied(straight.model))
    assert second.result().masks == straight.masks
    assert [r.step for r in second.history] == [r.step for r in straight.history]
    again = Session(model, wanted, data=examples())
    again.load_state_dict(second.state_dict())
    assert again.done
    assert list(again.run()) == []


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_loop_of_ones_own(interrupted):
    """The limit is looked at when the loop has retrained: at the next `advance()`, or by `check()`."""
    model = network()
    inputs, targets = examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    wanted = recipe(limit(limit=2 * loss_of(model) + 0.1), retrain="none", steps=3)
    session = Session(model, wanted, data=(inputs, targets))
    session.attach(optimizer)
    assert session.advance().step == 1
    assert session.check() is None
    before = copied(model)
    session.advance()
    with torch.no_grad():
        model[3].bias.add_(torch.tensor([9.0, 0.0, -9.0]))  # a training that goes wrong
    if interrupted:
        state = session.state_dict()
        session.detach()
        session = Session(model, wanted, data=(inputs, targets))
        session.attach(optimizer)
        session.load_state_dict(state)
    assert session.advance() is None
    assert session.done
    assert session.stopped.step == 2
    assert [r.step for r in session.history] == [1]
    assert same(before, copied(model))
    with pytest.raises(InputError, match="stopped at step 2"):
        session.advance()
    nn.functional.cross_entropy(model(inputs), targets).backward()
    optimizer.step()  # the masks that act are those of before
    assert torch.equal(model[0].weight != 0, session.masks["0.weight"])


def test_a_loop_that_advances_by_itself_checks_the_last_step_too():
    model = network()
    inputs, targets = examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    session = Session(model, recipe(limit(increase=0.0), retrain="none", steps=1), data=(inputs, targets))
    session.attach(optimizer, every=1)
    before = copied(model)
    for _ in range(2):
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    assert session.stopped.step == 1
    assert same(before, copied(model))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either 'limit'"),
        ({"limit": 1.0, "increase": 0.1}, "give either 'limit'"),
        ({"limit": -1.0}, "limit"),
        ({"of": "accuracy", "limit": 1.0}, "of"),
    ],
)
def test_limits_that_cannot_be(settings, message):
    with pytest.raises(InputError, match=message):
        recipe(limit(**settings))


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(ignore_index=2),
        nn.CrossEntropyLoss(reduction="sum", ignore_index=2),
        nn.CrossEntropyLoss(torch.tensor([1.0, 9.0, 1.0]), ignore_index=2),
    ],
)
def test_the_error_rate_is_of_the_classes_that_the_loss_does_not_ignore_each_once(loss):
    """In batches of different sizes, whatever the loss is a mean of."""
    inputs, targets = examples(300)
    model = network()
    data = list(zip(inputs.split((4, 200, 96)), targets.split((4, 200, 96)), strict=True))
    none = {"retrain": "none", "calibration": 300}
    session = Session(model, recipe(limit(of="error_rate", increase=1.0), **none), data=data, loss=loss)
    wanted = error_rate_of(model, (inputs[targets != 2], targets[targets != 2]))
    assert session._calibration.error(session.recipe.stop) == pytest.approx(wanted)


def test_one_output_has_no_error_rate():
    model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 1))
    inputs, targets = examples()

    def loss(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], (targets > 0).float())

    with pytest.raises(InputError, match="a single class, which is always the highest"):
        prune(model, recipe(limit(of="error_rate", increase=0.1)), (inputs, targets.clamp(max=1)), loss=loss)


@pytest.mark.parametrize(
    ("stop", "data", "error", "message"),
    [
        (
            limit(limit=1.0),
            None,
            InputError,
            "the recipe's stop 'error_limit' needs data",
        ),
        (limit(limit=1e-9), examples(), InputError, "before pruning, over the limit of 1e-09 already"),
        (
            limit(of="error_rate", limit=1.0),
            (examples()[0], torch.rand(64, 3)),
            InputError,
            r"an error_rate needs class numbers as targets, got torch.float32 of the shape \(64, 3\)",
        ),
        (
            limit(increase=1.0),
            (torch.full((4, 6), float("nan")), torch.zeros(4, dtype=torch.long)),
            DataError,
            "the error of the network before pruning is nan",
        ),
    ],
)
def test_what_is_refused_before_anything_is_changed(stop, data, error, message):
    model = network()
    before = copied(model)
    with pytest.raises(error, match=message):
        prune(model, recipe(stop, retrain="none"), data)
    assert same(before, copied(model))


def test_recipes_without_a_stop_keep_their_names():
    plain = Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}})
    assert "stop" not in plain.identity()
    assert plain.digest() == Recipe.parse({**plain.to_dict(), "stop": "none"}).digest()
    assert Recipe.from_yaml(recipe(limit(limit=0.5)).to_yaml()).stop == ErrorLimit(limit=0.5)
