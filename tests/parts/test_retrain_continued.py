"""Retrainings after all steps as the parts of one training."""

import copy

import pytest
from torch import nn

from prunekit import Recipe, methods, prune
from prunekit.errors import ModelError
from prunekit.pruning import Session
from prunekit.seeds import derive
from prunekit.training import Training, train
from small_nets import blobs, copied, mlp, recipe, same

DATA = blobs(100)


def continued(steps: int, **changes: object) -> Recipe:
    training = {"iterations": 7, "batch_size": 30, "decay": "cosine", **changes}
    return recipe(
        allocation="none",
        schedule={"name": "allocation_decides", "steps": steps},
        retrain={"name": "continued", "training": training},
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"optimizer": "sgd", "lr": 0.1},
        {"optimizer": "sgd", "lr": 0.1, "momentum": 0.0},
        {"optimizer": "adam", "decay": "steps", "regularize": [{"name": "l2", "strength": 0.01}]},
    ],
)
def test_where_nothing_is_removed_it_is_one_training_to_the_bit(settings) -> None:
    parts, whole = mlp(10, 8, 3), mlp(10, 8, 3)
    prune(parts, continued(5, **settings), DATA, seed=3)
    training = Training.parse({"iterations": 35, "batch_size": 30, "decay": "cosine", **settings})
    train(whole, DATA, training, seed=derive(3, "training", "retrain"))
    assert same(copied(parts), copied(whole))


def test_a_new_optimizer_for_each_step_is_something_else() -> None:
    one, other = mlp(10, 8, 3), mlp(10, 8, 3)
    chosen = continued(5).to_dict()
    prune(one, recipe(**chosen), DATA, seed=3)
    chosen["retrain"] = {"name": "fine_tune", "training": chosen["retrain"]["training"]}
    prune(other, recipe(**chosen), DATA, seed=3)
    assert not same(copied(one), copied(other))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_it_goes_on_from_a_saved_state_to_the_same_bits(every) -> None:
    chosen = recipe(
        schedule={"name": "cubic", "sparsity": 0.8, "steps": 5},
        retrain={"name": "continued", "training": {"iterations": 6, "batch_size": 30, "decay": "cosine"}},
        retrain_every=every,
    )
    through = mlp(10, 8, 3)
    expected = prune(through, chosen, DATA, seed=1)
    first = mlp(10, 8, 3)
    session = Session(first, chosen, data=DATA, seed=1)
    run = session.run()
    for _ in range(3):
        next(run)
    state = copy.deepcopy(session.state_dict())
    again = mlp(10, 8, 3)
    again.load_state_dict(first.state_dict())
    resumed = Session(again, chosen, data=DATA, seed=1)
    resumed.load_state_dict(state)
    assert len(list(resumed.run())) == 2
    assert same(copied(again), copied(through))
    assert same(dict(resumed.masks), dict(expected.masks))
    assert all(bool((again.get_parameter(name)[~mask] == 0).all()) for name, mask in resumed.masks.items())


def test_a_pruning_does_not_change_the_state_of_another() -> None:
    chosen = continued(2)
    one, other = mlp(10, 8, 3), mlp(10, 8, 3)
    prune(one, chosen, DATA)
    prune(other, chosen, DATA)
    assert same(copied(one), copied(other))


def test_methods_of_one_training() -> None:
    for name in ("gradual_magnitude", "layer_obs_retrained"):
        assert methods.recipe(name).retrain.name == "continued"


@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.0}])
def test_a_wrapped_network_is_trained_as_it_is_by_itself(settings) -> None:
    """The names of a wrapper's parameters have a prefix, those of the state have none."""
    chosen = continued(3, **settings)
    plain, wrapped = mlp(10, 8, 3), nn.DataParallel(mlp(10, 8, 3))
    prune(plain, chosen, DATA)
    prune(wrapped, chosen, DATA)
    assert same(copied(plain), copied(wrapped.module))


def test_a_weight_that_is_set_free_between_the_steps_is_named() -> None:
    model = mlp(10, 8, 3)
    model[2].requires_grad_(False)
    run = Session(model, continued(2), data=DATA).run()
    next(run)
    model[2].requires_grad_(True)
    before = copied(model)
    with pytest.raises(ModelError, match=r"2.weight is trained now, but was frozen when it began"):
        next(run)
    assert same(copied(model), before)


@pytest.mark.parametrize(("rest", "total"), [(0.25, 28), (0.4, 35), (0.0, 21)])
@pytest.mark.parametrize("every", [1, 3])
def test_the_rest_belongs_to_the_same_training(rest, total, every) -> None:
    chosen = continued(3 * every).to_dict()
    chosen["retrain"]["rest"] = rest
    parts, whole = mlp(10, 8, 3), mlp(10, 8, 3)
    prune(parts, recipe(**{**chosen, "retrain_every": every}), DATA, seed=3)
    training = Training.parse({"iterations": total, "batch_size": 30, "decay": "cosine"})
    train(whole, DATA, training, seed=derive(3, "training", "retrain"))
    assert same(copied(parts), copied(whole))
