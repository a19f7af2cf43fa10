"""Movement: sums over the steps of training, against loops that add them up by hand."""

import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from prunekit.errors import InputError, ModelError
from prunekit.methods import movement
from prunekit.pruning import Session, prune
from prunekit.recipe import Recipe
from small_nets import blobs, mlp

NAMES = ("0.weight", "2.weight")
SGD = {"optimizer": "sgd", "momentum": 0.0, "lr": 0.05, "batch_size": 1000}


def recipe(sparsity=0.6, steps=3, score=None, **parts):
    return Recipe.parse(
        {
            "score": {"name": "movement", "training": {"iterations": 4, **SGD}, **(score or {})},
            "allocation": "per_layer",
            "schedule": {"name": "linear", "sparsity": sparsity, "steps": steps},
            **parts,
        }
    )


def step_by_hand(model, sums, data, rate=0.05, masks=None):
    """One step of gradient descent on all examples; the sums take in -w dL/dw from before it."""
    gradients = torch.autograd.grad(cross_entropy(model(data[0]), data[1]), list(model.parameters()))
    with torch.no_grad():
        for (name, weight), gradient in zip(model.named_parameters(), gradients, strict=True):
            if name in sums:
                sums[name] -= weight * gradient
            weight -= rate * gradient
            if masks is not None and name in masks:
                weight *= masks[name]


def sums_of(model):
    return {name: torch.zeros_like(model.get_parameter(name)) for name in NAMES}


def saved(session):
    return session.state_dict()["parts"]["score"]


def lowest_by_hand(sums, count):
    """The mask without the lowest sums."""
    order = sums.flatten().tolist()
    gone = sorted(range(len(order)), key=lambda place: order[place])[:count]
    mask = torch.ones(len(order), dtype=torch.bool)
    mask[gone] = False
    return mask.view(sums.shape)


def test_sums_and_masks_against_a_loop_by_hand():
    """Warm-up and retraining after each step, in float64."""
    inputs, targets = blobs()
    data = (inputs.double(), targets)
    model = mlp(10, 12, 3, dtype=torch.float64)
    twin, sums = copy.deepcopy(model), sums_of(model)
    retrain = {"name": "fine_tune", "training": {"iterations": 2, **SGD}}
    session = Session(model, recipe(retrain=retrain), data=data)
    masks = {name: torch.ones_like(sums[name]) for name in NAMES}
    for _ in range(4):
        step_by_hand(twin, sums, data)
    for number, _ in enumerate(session.run(), start=1):
        for name in NAMES:
            removed = round(0.6 * number / 3 * sums[name].numel())
            ranked = sums[name].masked_fill(masks[name] == 0, -torch.inf)
            masks[name] = lowest_by_hand(ranked, removed).double()
            with torch.no_grad():
                twin.get_parameter(name).mul_(masks[name])
            assert torch.equal(session.masks[name], masks[name].bool())
        for _ in range(2):
            step_by_hand(twin, sums, data, masks=masks)
        for name in NAMES:
            assert torch.allclose(saved(session)[name], sums[name], rtol=1e-9, atol=1e-14)
            assert torch.allclose(model.get_parameter(name), twin.get_parameter(name), rtol=1e-9, atol=1e-14)


def test_penalties_do_not_count():
    """A penalty changes the weights, but the sums are of the loss's own gradients."""
    inputs, targets = blobs()
    data = (inputs.double(), targets)
    model = mlp(10, 12, 3, dtype=torch.float64)
    start = copy.deepcopy(model)
    training = {"iterations": 1, **SGD, "regularize": [{"name": "l2", "strength": 0.5}]}
    session = Session(model, recipe(score={"training": training}), data=data)
    next(session.run())
    sums = sums_of(start)
    step_by_hand(start, sums, data)
    for name in NAMES:
        assert torch.allclose(saved(session)[name], sums[name], rtol=1e-9, atol=1e-14)


def test_units_score_the_sum_of_their_weights():
    model = mlp(10, 12, 3)
    session = Session(model, recipe(granularity="unit", steps=1, sparsity=0.5), data=blobs())
    next(session.run())
    per_unit = saved(session)["0.weight"].double().sum(1)
    assert torch.equal(session.kept["0"], lowest_by_hand(per_unit, 6))


def test_frozen_weights_and_low_precision():
    model = mlp(10, 12, 3).to(torch.bfloat16)
    model[0].weight.requires_grad_(False)
    inputs, targets = blobs()
    session = Session(model, recipe(), data=(inputs.bfloat16(), targets))
    next(session.run())
    assert saved(session)["2.weight"].dtype == torch.float32
    assert bool((saved(session)["0.weight"] == 0).all())
    assert bool((saved(session)["2.weight"] != 0).any())


def loop(model, session, optimizer, steps):
    inputs, targets = blobs()
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def begun(seed=0):
    model = mlp(10, 12, 3, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    return model, optimizer, recipe().attach(model, optimizer, every=3)


def test_a_loop_of_ones_own_adds_up_what_it_does():
    """Also where a penalty of the user's stands in the gradients: they are what the optimizer is given."""
    model, optimizer, session = begun()
    sums = sums_of(model)
    inputs, targets = blobs()
    for _ in range(5):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()
        for name in NAMES:
            weight = model.get_parameter(name)
            sums[name] -= weight.detach() * weight.grad
        optimizer.step()
        for name in NAMES:
            assert torch.allclose(saved(session)[name], sums[name], rtol=1e-5, atol=1e-8)
    assert len(session.history) == 1


def test_a_resumed_loop_ends_with_the_same_bits(tmp_path):
    whole_model, whole_optimizer, whole = begun()
    loop(whole_model, whole, whole_optimizer, 9)
    model, optimizer, session = begun()
    loop(model, session, optimizer, 5)
    states = {"model": model, "optimizer": optimizer, "session": session}
    torch.save({name: part.state_dict() for name, part in states.items()}, tmp_path / "state.pt")
    model, optimizer, session = begun(seed=7)
    read = torch.load(tmp_path / "state.pt", weights_only=True)
    for name, part in {"model": model, "optimizer": optimizer, "session": session}.items():
        part.load_state_dict(read[name])
    loop(model, session, optimizer, 4)
    assert len(session.history) == 3
    for name in NAMES:
        assert torch.equal(saved(session)[name], saved(whole)[name])
        assert torch.equal(model.get_parameter(name), whole_model.get_parameter(name))
    assert session.kept == whole.kept


def test_a_copy_goes_on_by_itself():
    retrain = {"name": "fine_tune", "training": {"iterations": 2, **SGD}}
    session = Session(mlp(10, 12, 3), recipe(retrain=retrain), data=blobs())
    next(session.run())
    before = {name: value.clone() for name, value in saved(session).items()}
    twin = copy.deepcopy(session)
    list(twin.run())
    for name in NAMES:
        assert torch.equal(saved(session)[name], before[name])
        assert not torch.equal(saved(twin)[name], before[name])
    list(session.run())
    for name in NAMES:
        assert torch.equal(saved(session)[name], saved(twin)[name])
        assert torch.equal(session.model.get_parameter(name), twin.model.get_parameter(name))


def test_a_copy_of_an_attached_session_has_no_hooks():
    model, optimizer, session = begun()
    loop(model, session, optimizer, 1)
    twin = copy.deepcopy(session)
    loop(model, session, optimizer, 1)
    assert not torch.equal(saved(session)["0.weight"], saved(twin)["0.weight"])
    other = torch.optim.Adam(twin.model.parameters(), 0.01)
    other.load_state_dict(optimizer.state_dict())
    twin.attach(other, every=3)
    loop(twin.model, twin, other, 1)
    assert bool((saved(twin)["0.weight"] != 0).any())


def test_a_step_that_fails_leaves_the_sums_as_they_were():
    model = mlp(10, 12, 3)
    retrain = {"name": "fine_tune", "training": {"iterations": 2, **SGD}}
    session = Session(model, recipe(retrain=retrain), data=blobs())
    next(session.run())
    before, weights = saved(session), copy.deepcopy(model.state_dict())

    def fails(model):
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        next(session.run(evaluate=fails))
    for name in NAMES:
        assert torch.equal(saved(session)[name], before[name])
        assert torch.equal(model.state_dict()[name], weights[name])
    list(session.run())


def damaged(state, change):
    state = copy.deepcopy({key: value for key, value in state.items() if key != "digest"})
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("parts"), "parts: it has no 'score'"),
        (lambda state: state["parts"].update(repair={}), "parts: 'repair' is no key of it"),
        (lambda state: state["parts"]["score"].pop("0.weight"), "parts: score: it has no '0.weight'"),
        (lambda state: state["parts"]["score"].update(x=torch.ones(1)), "parts: score: 'x' is no key of it"),
        (lambda state: state["parts"]["score"].update({"0.weight": 3}), "a tensor is needed, not int"),
        (
            lambda state: state["parts"]["score"].update({"0.weight": torch.ones(3, 10)}),
            r"parts: score: 0.weight: the shape is \(3, 10\), in the model it is \(12, 10\)",
        ),
        (
            lambda state: state["parts"]["score"].update({"0.weight": torch.ones(12, 10).int()}),
            "the type is torch.int32, not torch.float32",
        ),
        (lambda state: state["parts"]["score"]["0.weight"].fill_(torch.nan), "it holds NaN"),
    ],
)
def test_damaged_states_are_refused_and_nothing_changes(change, message):
    session = Session(mlp(10, 12, 3), recipe(), data=blobs())
    next(session.run())
    state = session.state_dict()
    with pytest.raises(InputError, match=message):
        session.load_state_dict(damaged(state, change))
    assert torch.equal(saved(session)["0.weight"], state["parts"]["score"]["0.weight"])


def test_a_recipe_without_sums_takes_none():
    plain = Recipe.parse({"schedule": {"name": "one_shot", "sparsity": 0.5}})
    session = Session(mlp(10, 12, 3), plain)
    assert "parts" not in session.state_dict()
    with pytest.raises(InputError, match="parts: 'score' is no key of it"):
        session.load_state_dict(damaged({**session.state_dict(), "parts": {"score": {}}}, lambda state: None))


def test_a_loaded_state_is_not_shared():
    session = Session(mlp(10, 12, 3), recipe(), data=blobs())
    next(session.run())
    state = session.state_dict()
    kept = state["parts"]["score"]["0.weight"].clone()
    session.load_state_dict(state)
    session._state.parts["score"]["0.weight"].add_(1)
    assert torch.equal(state["parts"]["score"]["0.weight"], kept)


def test_what_is_refused():
    with pytest.raises(InputError, match="the recipe's score 'movement' needs data, but none is given"):
        prune(mlp(10, 12, 3), recipe())
    frozen = mlp(10, 12, 3).requires_grad_(False)
    with pytest.raises(ModelError, match="score 'movement' cannot train the model: all its parameters"):
        prune(frozen, recipe(), blobs())
    session = Session(mlp(10, 12, 3), recipe())
    with pytest.raises(InputError, match=r"'movement' is a training: attach\(\)"):
        session.advance()
    with pytest.raises(InputError, match="class"):
        prune(mlp(10, 12, 3), recipe(), (blobs()[0], torch.full((len(blobs()[0]),), 9)))


def test_the_named_method_trains_before_and_after():
    chosen = movement(sparsity=0.8, steps=4, epochs=3)
    assert chosen.score.warm_up.epochs == chosen.retrain.plan.epochs == 3
    assert not chosen.needs_data
    assert chosen.trains
    pruned = prune(mlp(10, 12, 3), movement(sparsity=0.75, steps=2, epochs=1), blobs())
    assert pruned.masks.sparsity == pytest.approx(0.75, abs=0.01)
