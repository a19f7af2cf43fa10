"""Pruning inside a training loop of the user's."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, Adam, AdamW

import attached_loop
from prunekit import Recipe
from prunekit.errors import InputError, ModelError
from prunekit.graph import prune_groups, shrink, shrink_dead
from prunekit.pruning import Session
from small_nets import blobs, copied, mlp, recipe, same, zeros

OPTIMIZERS = {
    "sgd": lambda p: SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, 0.01, weight_decay=0.1),
    "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.1),
}
GRADUAL = {"name": "linear", "sparsity": 0.6, "steps": 3}


def steps(model, optimizer, count):
    inputs, targets = blobs()
    for _ in range(count):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def regrow(mask, count):
    """Keep some of what a mask removes."""
    for place in (~mask).nonzero()[:count]:
        mask[tuple(place)] = True


def attached(name="sgd", every=None, data=None, model=None, **settings):
    model = model or mlp(10, 16, 3)
    optimizer = OPTIMIZERS[name](model.parameters())
    session = recipe(**{"schedule": GRADUAL, **settings}).attach(model, optimizer, every=every, data=data)
    return model, optimizer, session


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_masks_act_after_every_step(name):
    model, optimizer, session = attached(name)
    steps(model, optimizer, 5)
    for k in (1, 2, 3):
        record = session.advance()
        assert record.step == k
        for _ in range(4):
            steps(model, optimizer, 1)
            assert sum(zeros(model, n) for n in session.masks) == round(0.2 * k * 208)
            assert all(bool((p[~mask] == 0).all()) for p, mask in session.masks.parameters(model))
    assert session.done
    with pytest.raises(InputError, match="all 3 steps of the schedule are taken already"):
        session.advance()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_removed_weights_are_cleared(name):
    model, optimizer, session = attached(name)
    steps(model, optimizer, 5)
    moments = copy.deepcopy(optimizer.state[model[0].weight])
    session.advance()
    mask, checked = session.masks["0.weight"], 0
    for key, value in optimizer.state[model[0].weight].items():
        if isinstance(value, torch.Tensor) and value.shape == mask.shape:
            assert bool((value[~mask] == 0).all())
            assert torch.equal(value[mask], moments[key][mask])
            checked += 1
    assert checked == (2 if "adam" in name else 1)


def test_every_advances_by_itself():
    model, optimizer, session = attached(every=4)
    done = []
    for _ in range(15):
        steps(model, optimizer, 1)
        done.append(len(session.history))
    assert done == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def test_detached_it_acts_no_more():
    model, optimizer, session = attached(every=2)
    steps(model, optimizer, 2)
    session.detach()
    steps(model, optimizer, 4)
    assert len(session.history) == 1
    assert zeros(model, "0.weight") < int((~session.masks["0.weight"]).sum())
    session.attach(optimizer)  # and can be attached again
    assert zeros(model, "0.weight") == int((~session.masks["0.weight"]).sum())


def pruned_units():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer, inputs = torch.optim.SGD(model.parameters(), lr=0.1), torch.randn(5, 6)
    recipe = Recipe(granularity="unit", schedule={"name": "one_shot", "sparsity": 0.5})
    session = recipe.attach(model, optimizer, every=1, example_inputs=inputs)
    model(inputs).square().sum().backward()
    optimizer.step()
    return model, optimizer, session, inputs


@pytest.mark.parametrize(
    "surgery",
    [
        lambda session, inputs: session.result().shrink(inputs),
        lambda session, inputs: shrink(session.model, inputs, session.kept),
        lambda session, inputs: prune_groups(session.model, inputs, 0.5),
        lambda session, inputs: shrink_dead(session.model, inputs),
    ],
    ids=["the result", "shrink", "prune_groups", "shrink_dead"],
)
def test_an_attached_network_is_not_shrunk_before_it_is_detached(surgery):
    model, optimizer, session, inputs = pruned_units()
    layers, values = list(model), copy.deepcopy(model.state_dict())
    with pytest.raises(
        InputError, match=r"^0\.weight is held at zero .*detach\(\) the session, or remove\(\)"
    ):
        surgery(session, inputs)
    assert list(model) == layers
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    model(inputs).square().sum().backward()
    optimizer.step()  # the training goes on
    session.detach()
    surgery(session, inputs)
    assert model[0].out_features == 4


def test_a_network_is_shrunk_once_its_optimizer_is_gone_though_nobody_detached():
    model, optimizer, session, inputs = pruned_units()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)  # the two refer to each other
    del optimizer, scheduler
    session.result().shrink(inputs)
    assert model[0].out_features == 4


def test_attaching_twice_is_refused():
    _, optimizer, session = attached()
    with pytest.raises(InputError, match="attached to an optimizer already: detach"):
        session.attach(optimizer)


def test_the_model_has_no_hooks_and_can_be_copied():
    model, optimizer, session = attached(every=1)
    steps(model, optimizer, 2)
    keys = list(mlp(10, 16, 3).state_dict())
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == list(twin.state_dict()) == keys
    steps(twin, SGD(twin.parameters(), 0.1), 1)  # the copy is free
    assert zeros(twin, "0.weight") < zeros(model, "0.weight")
    assert session.result().masks.sparsity == pytest.approx(0.4, abs=0.01)


def test_moving_to_another_precision():
    model, optimizer, session = attached()
    session.advance()
    steps(model, optimizer, 1)
    model.double()
    inputs, targets = blobs(dtype=torch.float64)
    optimizer.zero_grad()
    optimizer.state.clear()
    cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert sum(zeros(model, name) for name in session.masks) == round(0.2 * 208)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_models_train_in_the_users_loop(backend):
    inner = mlp(10, 16, 3)
    model = torch.compile(inner, backend=backend)
    optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
    session = recipe(schedule=GRADUAL).attach(model, optimizer, every=2)
    plain, other, _ = attached(every=2)
    other.param_groups[0]["weight_decay"] = 0.0
    steps(model, optimizer, 8)
    steps(plain, other, 8)
    assert session.done
    assert list(inner.state_dict()) == list(plain.state_dict())
    for one, two in zip(inner.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


class TestRewinding:
    def test_the_initial_values_are_kept_when_attaching(self):
        model = mlp(10, 16, 3)
        initial = copied(model)
        model, optimizer, session = attached(model=model, retrain="rewind")
        steps(model, optimizer, 5)
        session.advance()
        for name, value in copied(model).items():
            assert torch.equal(value, initial[name] * session.masks.get(name, torch.tensor(True)))
        assert not optimizer.state

    def test_the_values_of_a_step_are_kept_as_they_go_by(self):
        model, optimizer, session = attached(retrain={"name": "rewind", "step": 3})
        steps(model, optimizer, 3)
        at_three = copied(model)
        steps(model, optimizer, 4)
        session.advance()
        assert torch.equal(model[0].bias, at_three["0.bias"])
        assert torch.equal(model[0].weight, at_three["0.weight"] * session.masks["0.weight"])

    def test_going_back_to_what_is_still_to_come_is_refused(self):
        with pytest.raises(InputError, match=r"every = 2: .*values at step 3 of the training.*still to come"):
            attached(retrain={"name": "rewind", "step": 3}, every=2)
        model, optimizer, session = attached(retrain={"name": "rewind", "step": 3}, every=3)
        steps(model, optimizer, 3)
        assert len(session.history) == 1

    def test_advancing_too_early_changes_nothing(self):
        model, optimizer, session = attached(retrain={"name": "rewind", "step": 3})
        steps(model, optimizer, 2)
        before = copied(model)
        with pytest.raises(InputError, match="needs the values at step 3"):
            session.advance()
        assert same(before, copied(model))
        assert session.masks.kept == 208

    def test_reinitializing(self):
        model, optimizer, session = attached(retrain="reinitialize")
        steps(model, optimizer, 3)
        session.advance()
        assert not optimizer.state
        assert sum(zeros(model, name) for name in session.masks) == round(0.2 * 208)


class TestRefusals:
    @pytest.mark.parametrize("every", [0, -1])
    def test_every(self, every):
        with pytest.raises(InputError, match=f"every = {every}: .*at least 1"):
            attached(every=every)

    def test_data_that_is_missing(self):
        with pytest.raises(InputError, match="score 'gradient' needs data"):
            attached(score="gradient")

    def test_layers_that_cannot_be_drawn_again(self):
        model = mlp(10, 3)
        model.scale = torch.nn.Parameter(torch.ones(3))
        with pytest.raises(ModelError, match="has no reset_parameters"):
            attached(model=model, retrain="reinitialize")

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda s: s.update(recipe={"score": "x"}), "followed another recipe"),
            (lambda s: s.update(seed=5), "has seed 5, this one 0"),
            (lambda s: s["masks"].pop("2.weight"), "pruned other layers"),
            (lambda s: s["masks"].update(more=torch.ones(2, 2).bool()), "pruned other layers"),
            (lambda s: s["masks"].update({"0.weight": torch.ones(2, 2).bool()}), r"its mask \(2, 2\)"),
            (lambda s: s["masks"].update({"0.weight": torch.ones(16, 10)}), "must be a boolean tensor"),
            (lambda s: s.pop("masks"), "not the state of a session: it has no 'masks'"),
            (lambda s: s.clear(), "not the state of a session: it has no 'recipe'"),
        ],
    )
    def test_the_state_of_another_session(self, spoil, message):
        model, optimizer, session = attached(every=2)
        steps(model, optimizer, 5)
        state = session.state_dict()
        spoil(state)
        fresh, other, target = attached(every=2)
        steps(fresh, other, 2)
        before, masks, history = copied(fresh), target.masks, list(target.history)
        with pytest.raises(InputError, match=message):
            target.load_state_dict(state)
        assert same(before, copied(fresh))
        assert target.masks is masks
        assert target.history == history

    @pytest.mark.parametrize("digest", [True, False])
    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (lambda s: regrow(s["masks"]["0.weight"], 1), "masks: 0.weight: .* are kept, .* by the history"),
            (lambda s: s["history"][1]["layers"].update({"0.weight": 160}), "history: step 2: "),
            (lambda s: s["history"][0].update(kept=7), "history: step 1: kept: 7 where .* is right"),
            (lambda s: s["history"][1].update(step=7), "history: step 2: step: 7 where 2 is right"),
            (lambda s: s["history"][0].pop("total"), "history: step 1: it has no 'total'"),
            (lambda s: s["history"][0].update(more=1), "history: step 1: 'more' is no key"),
            (lambda s: s["history"].extend(s["history"]), "it has 4 steps, but the schedule only 3"),
            (lambda s: s["history"].reverse(), "history: step 1: "),
            (lambda s: s.update(history={}), "history: a list of records is needed"),
            (lambda s: s.update(seed=False), "has seed False"),
            (lambda s: s.update(optimizer_steps=-1), "optimizer_steps = -1: a whole number"),
            (lambda s: s.update(optimizer_steps=float("nan")), "optimizer_steps = nan: a whole number"),
            (lambda s: s.update(checkpoints={"x": {}}), "checkpoints: step = 'x'"),
            (lambda s: s.update(ranking={}), "ranking: there should be none"),
            (lambda s: s.update(stop={"allowed": 1.0}), "stop: it has no 'held'"),
            (lambda s: s.update(stop={"allowed": 1.0, "held": None, "stopped": None}), "no rule to stop by"),
            (lambda s: s.update(more=1), "'more' is no key of it"),
        ],
    )
    def test_a_damaged_state(self, spoil, message, digest):
        _, _, session = attached(every=2)
        session.advance()
        session.advance()
        state = copy.deepcopy(session.state_dict())
        spoil(state)
        if not digest:  # as states were before they had one: what they say is looked at
            del state["sha256"]
        model, _, target = attached(every=2)
        before, kept = copied(model), target.state_dict()
        with pytest.raises(InputError, match=message):
            target.load_state_dict(state)
        assert same(before, copied(model))
        assert str(target.state_dict()) == str(kept)

    def test_a_state_in_which_one_mask_lost_a_weight_and_got_another(self):
        _, _, session = attached()
        session.advance()
        state = copy.deepcopy(session.state_dict())
        mask = state["masks"]["0.weight"]
        regrow(mask, 1)
        mask[tuple(mask.nonzero()[-1])] = False
        with pytest.raises(InputError, match="is damaged or was changed"):
            attached()[2].load_state_dict(state)

    @pytest.mark.parametrize("value", [float("nan"), None])
    def test_values_to_go_back_to_that_are_damaged(self, value):
        retrain = {"retrain": {"name": "rewind", "step": 0}}
        _, _, session = attached(**retrain)
        session.advance()
        state = copy.deepcopy(session.state_dict())
        if value is None:
            state["checkpoints"][0]["0.weight"] = torch.zeros(3, 3)
        else:
            state["checkpoints"][0]["0.weight"][0, 0] = value
        with pytest.raises(InputError, match=r"checkpoints: step 0: 0.weight: (it holds NaN|the shape is)"):
            attached(**retrain)[2].load_state_dict(state)

    @pytest.mark.parametrize("every", [True, 1.5, float("nan"), 0, -1, "3", 2**80, [1], torch.tensor(2)])
    def test_every_that_is_no_number_of_steps(self, every):
        model = mlp(10, 16, 3)
        optimizer = SGD(model.parameters(), 0.1)
        with pytest.raises(InputError, match=r"every = .*: a whole number of at least 1"):
            recipe(schedule=GRADUAL).attach(model, optimizer, every=every)
        assert not optimizer._optimizer_step_post_hooks

    def test_every_of_numpy(self):
        model, optimizer, session = attached(every=np.int64(2))
        steps(model, optimizer, 2)
        assert len(session.history) == 1

    @pytest.mark.parametrize("settings", [{}, {"targets": ("2",)}])
    def test_a_second_session_on_an_optimizer(self, settings):
        model, optimizer, first = attached()
        before, hooks = copied(model), len(optimizer._optimizer_step_post_hooks)
        with pytest.raises(InputError, match="carries the masks of another session already"):
            recipe(schedule=GRADUAL, **settings).attach(model, optimizer)
        assert same(before, copied(model))
        assert len(optimizer._optimizer_step_post_hooks) == hooks
        first.detach()
        recipe(schedule=GRADUAL, **settings).attach(model, optimizer)

    def test_two_sessions_of_other_weights_of_a_network(self):
        model = mlp(10, 16, 3)
        optimizer = AdamW(model.parameters(), 0.05, weight_decay=0.1)
        first = recipe(schedule=GRADUAL, targets=("0",)).attach(model, optimizer, every=1)
        rewound = {"targets": ("2",), "retrain": {"name": "rewind", "step": 0}}
        second = recipe(schedule=GRADUAL, **rewound).attach(model, optimizer, every=4)
        for done in range(1, 13):
            steps(model, optimizer, 1)  # every fourth goes back to the dense values of both layers
            for session, every in ((first, 1), (second, 4)):
                for name, mask in session.masks.items():
                    assert zeros(model, name) == int((~mask).sum())
                    assert int((~mask).sum()) == round(0.2 * min(done // every, 3) * mask.numel())

    def test_two_networks_on_one_optimizer(self):
        one, other = mlp(10, 16, 3), mlp(10, 16, 3)
        optimizer = SGD([*one.parameters(), *other.parameters()], 0.1)
        for model in (one, other):
            recipe(schedule=GRADUAL).attach(model, optimizer).advance()

    def test_an_optimizer_of_another_model(self):
        model, other = mlp(10, 16, 3), mlp(10, 16, 3)
        before = copied(model)
        for optimizer in (SGD(other.parameters(), 0.1), SGD(model[2].parameters(), 0.1)):
            with pytest.raises(InputError, match=r"\(SGD\) does not train 0.weight, which the recipe prunes"):
                recipe(schedule=GRADUAL).attach(model, optimizer)
            assert not optimizer._optimizer_step_post_hooks
        with pytest.raises(InputError, match=r"must be a torch.optim.Optimizer, not Sequential"):
            recipe(schedule=GRADUAL).attach(model, other)
        assert same(before, copied(model))

    def test_weights_that_are_frozen_need_no_optimizer(self):
        model = mlp(10, 16, 3)
        model[0].requires_grad_(False)
        recipe(schedule=GRADUAL).attach(model, SGD(model[2].parameters(), 0.1)).advance()
        model[2].requires_grad_(False)
        with pytest.raises(InputError, match=r"trains no parameter of this network, such as 0.weight"):
            recipe(schedule=GRADUAL).attach(model, SGD(mlp(3, 3).parameters(), 0.1))

    def test_data_is_tried_when_attaching(self):
        inputs, targets = blobs()
        with pytest.raises(ModelError, match="the network cannot take the data"):
            attached(score="gradient", data=(inputs[:, :3], targets))

    def test_the_state_of_another_recipe(self):
        _, _, session = attached()
        with pytest.raises(InputError, match=r"another recipe, with score.name = 'magnitude', not 'random'"):
            attached(score="random")[2].load_state_dict(session.state_dict())

    def test_the_state_of_another_model(self):
        _, _, session = attached()
        with pytest.raises(
            InputError, match=r"other layers, 2 where this one prunes 3: this one has '4.weight', it has not"
        ):
            attached(model=mlp(10, 16, 8, 3))[2].load_state_dict(session.state_dict())

    def test_the_state_of_other_steps_between(self):
        _, _, session = attached(every=3)
        with pytest.raises(InputError, match=r"a step after every 3 steps .*, this one has every = 4"):
            attached(every=4)[2].load_state_dict(session.state_dict())
        for every in (3, None):
            attached(every=every)[2].load_state_dict(session.state_dict())


RESUMED = {
    "sgd magnitude": ("sgd", {"score": "magnitude"}),
    "adam random": ("adam", {"score": "random"}),
    "adamw gradient": ("adamw", {"score": "gradient"}),
    "sgd rewind": ("sgd", {"retrain": {"name": "rewind", "step": 2}}),
    "adam rewind random": ("adam", {"score": "random", "retrain": "rewind"}),
    "adam regrow": ("adam", {"score": "gradient", "regrow": True}),
    "sgd reinitialize": ("sgd", {"retrain": "reinitialize"}),
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("stop", [3, 4, 7])
def test_resuming_is_the_same_bit_for_bit(case, stop, tmp_path):
    name, settings = RESUMED[case]
    whole, optimizer, session = attached(name, every=4, data=blobs(), **settings)
    steps(whole, optimizer, 15)

    model, optimizer, first = attached(name, every=4, data=blobs(), **settings)
    steps(model, optimizer, stop)
    checkpoint = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "session": first.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "checkpoint.pt")

    loaded = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model, optimizer, second = attached(name, every=4, data=blobs(), model=mlp(10, 16, 3, seed=9), **settings)
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    second.load_state_dict(loaded["session"])
    steps(model, optimizer, 15 - stop)
    assert second.masks == session.masks
    assert same(copied(model), copied(whole))
    assert [record.kept for record in second.history] == [record.kept for record in session.history]


def test_resuming_in_a_fresh_process(tmp_path):
    whole = attached_loop.run(0, 12, tmp_path / "whole.pt")
    attached_loop.run(0, 7, tmp_path / "half.pt")
    arguments = [sys.executable, attached_loop.__file__, "7", "12", "resumed.pt", "half.pt"]
    subprocess.run(arguments, cwd=tmp_path, check=True, timeout=100)
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert same(whole["model"], resumed["model"])
    assert same(whole["session"]["masks"], resumed["session"]["masks"])


class TestResumingPrune:
    """The same for the loop of prune() itself."""

    def session(self):
        chosen = recipe(
            score="weight_gradient",
            schedule=GRADUAL,
            retrain={"name": "fine_tune", "training": {"iterations": 6, "regularize": ["dropout"]}},
        )
        return Session(mlp(10, 16, 3), chosen, data=blobs(), seed=3)

    def test_bit_for_bit(self, tmp_path):
        whole = self.session()
        for _ in whole.run():
            pass
        first = self.session()
        next(first.run())
        torch.save({"model": first.model.state_dict(), "session": first.state_dict()}, tmp_path / "c.pt")
        loaded = torch.load(tmp_path / "c.pt", weights_only=True)
        second = self.session()
        second.model.load_state_dict(loaded["model"])
        second.load_state_dict(loaded["session"])
        torch.manual_seed(77)
        assert [record.step for record in second.run()] == [2, 3]
        assert second.masks == whole.masks
        assert same(copied(second.model), copied(whole.model))
        assert second.history[0].kept == whole.history[0].kept


def test_states_are_copies():
    model, optimizer, session = attached(every=2, retrain="rewind")
    steps(model, optimizer, 2)
    state = copy.deepcopy(session.state_dict())
    steps(model, optimizer, 4)
    again = session.state_dict()
    assert same(state["checkpoints"][0], again["checkpoints"][0])
    assert not same(state["masks"], again["masks"])
