"""Every method with data that cannot be taken: refused in one line, with nothing changed."""

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prunekit.batches import LoaderBatches, TensorBatches
from prunekit.errors import InputError, PrunekitError
from prunekit.methods import METHODS
from prunekit.models import Maxout
from prunekit.pruning import Session, prune
from prunekit.pruning.calibration import looking_only
from prunekit.recipe import Recipe
from small_nets import blobs, convnet, copied, images, mlp, recipe, same

SHORT = {"epochs": 2, "rounds": 2, "cycles": 2, "steps": 2, "every": 40}
Data = tuple[Tensor, Tensor]


def short(name: str) -> Recipe:
    allowed = inspect.signature(METHODS[name]).parameters
    return METHODS[name](**{key: value for key, value in SHORT.items() if key in allowed})


USING = [name for name in METHODS if short(name).needs_data or short(name).retrain.plan is not None]


def fitting(name: str) -> nn.Sequential:
    model = mlp(12, 8, 6, 4)
    if name == "network_slimming":
        for place in (3, 1):
            model.insert(place, nn.BatchNorm1d(model[place - 1].out_features))
    if name == "maxout_pruning":
        return nn.Sequential(Maxout(nn.Linear(12, 16), 4), nn.Linear(4, 4))
    return model


def good() -> Data:
    return blobs(64, 12, 4)


def with_target(value: int, place: int = 40) -> Data:
    inputs, targets = good()
    targets[place] = value
    return inputs, targets


def with_input(value: float) -> Data:
    inputs, targets = good()
    inputs[40, 3] = value
    return inputs, targets


BAD: dict[str, Callable[[], Data]] = {
    "a class too large": lambda: with_target(4),
    "a negative class": lambda: with_target(-1),
    "far too large": lambda: with_target(2**62, 0),
    "integer inputs": lambda: (good()[0].to(torch.int64), good()[1]),
    "bytes as inputs": lambda: (good()[0].to(torch.uint8), good()[1]),
    "float64 inputs": lambda: (good()[0].double(), good()[1]),
    "empty": lambda: (good()[0][:0], good()[1][:0]),
    "NaN": lambda: with_input(float("nan")),
    "all NaN": lambda: (good()[0] * float("nan"), good()[1]),
    "fewer targets": lambda: (good()[0], good()[1][:-1]),
    "targets in a column": lambda: (good()[0], good()[1].unsqueeze(1)),
    "real targets": lambda: (good()[0], good()[1].float()),
    "NaN targets": lambda: (good()[0], torch.full((64, 4), float("nan"))),
    "complex targets": lambda: (good()[0], torch.zeros(64, dtype=torch.complex64)),
    "narrow inputs": lambda: (good()[0][:, :7], good()[1]),
    "a dimension more": lambda: (good()[0].unsqueeze(2), good()[1]),
    "no dimension": lambda: (torch.tensor(1.0), torch.tensor(1)),
}
OF_TARGETS = {"a class too large", "a negative class", "far too large", "targets in a column", "real targets"}
WITHOUT_TARGETS = {
    "layer_obs", "exact_layer_obs", "masked_least_squares", "wanda", "owl_wanda", "ria", "sparsegpt", "alps",
    "layer_l0", "synflow", "flap", "minitron",
}  # fmt: skip
"""Methods that look at what layers are given, and at no target."""


def refused(model: nn.Module, chosen: Recipe, data: object, **more: object) -> str:
    before, modes = copied(model), [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    step = chosen.retrain.checkpoint
    checkpoints = {} if step is None else {step: before}
    with pytest.raises(PrunekitError) as caught:
        prune(model, chosen, data, checkpoints=checkpoints, seed=1, **more)  # type: ignore[arg-type]
    assert same(before, copied(model))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(generator, torch.get_rng_state())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", USING)
def test_every_method_refuses_it_before_a_weight_changes(name: str, kind: str) -> None:
    chosen = short(name)
    model = fitting(name)
    unseen = kind in OF_TARGETS or (name == "synflow" and kind == "NaN")  # it takes the shape of one example
    if name in WITHOUT_TARGETS and unseen:
        prune(model, chosen, BAD[kind](), seed=1)
        assert all(bool(value.isfinite().all()) for value in model.parameters())
    else:
        refused(model, chosen, BAD[kind]())


@pytest.mark.parametrize("kind", ["int32", "uint8", "int16", "bool"])
@pytest.mark.parametrize("name", ["obd", "iterative_magnitude", "sensitivity_magnitude", "oracle_units"])
def test_class_numbers_of_any_whole_type_are_those_of_int64(name: str, kind: str) -> None:
    inputs, targets = good()
    targets = targets.clamp(max=1) if kind == "bool" else targets
    model, twin = fitting(name), fitting(name)
    prune(model, short(name), (inputs, targets), seed=1)
    prune(twin, short(name), (inputs, targets.to(getattr(torch, kind))), seed=1)
    assert same(copied(model), copied(twin))


def stopping(**settings: object) -> Recipe:
    return recipe(stop={"name": "error_limit", "increase": 10.0, **settings})


@pytest.mark.parametrize(
    "kind", ["a class too large", "integer inputs", "narrow inputs", "real targets", "all NaN"]
)
def test_validation_data_is_tried_as_well(kind: str) -> None:
    inputs, targets = BAD[kind]()
    said = refused(mlp(12, 8, 4), stopping(), good(), validation=(inputs, targets))
    assert "validation" in said or kind == "all NaN"


def test_validation_data_that_is_not_looked_at_is_not_tried() -> None:
    prune(mlp(12, 8, 4), recipe(), validation=BAD["narrow inputs"]())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("a class too large", "the data: the class number 4 of example 40 is none .* 4 outputs: .* 0 to 3"),
        ("a negative class", "the class number -1 of example 40"),
        ("integer inputs", r"cannot take the data.* \(12,\) and type torch.int64 \(.*torch.float32\)"),
        ("narrow inputs", r"inputs of the shape \(7,\)"),
        ("targets in a column", r"outputs \(64, 4\) and targets \(64, 1\) differ in shape"),
        ("real targets", "classes are whole numbers"),
        ("NaN", "the inputs of example 40 are NaN"),
        ("NaN targets", "the targets of example 0 are NaN"),
        ("no dimension", "a list is one of batches: single examples go into a torch.utils.data.DataLoader"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(kind: str, message: str) -> None:
    chosen = recipe(retrain={"name": "fine_tune", "training": {"epochs": 1}})
    model = mlp(12, 8, 4)
    with pytest.raises(PrunekitError, match=message):
        prune(model, chosen, BAD[kind]())


def test_examples_that_cross_entropy_leaves_out_are_fine() -> None:
    chosen = recipe(retrain={"name": "fine_tune", "training": {"epochs": 1}})
    prune(mlp(12, 8, 4), chosen, with_target(-100))


def test_networks_that_make_numbers_of_nan_may_train_on_it() -> None:
    class Filling(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.nan_to_num()

    model = nn.Sequential(Filling(), *mlp(12, 8, 4))
    prune(model, recipe(retrain={"name": "fine_tune", "training": {"epochs": 1}}), with_input(float("nan")))


def test_a_last_batch_of_one_that_batch_norm_cannot_take() -> None:
    inputs, targets = images(33)
    chosen = recipe(retrain={"name": "fine_tune", "training": {"epochs": 1, "batch_size": 32}})
    model = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    assert "batch_size = 32, 1 inputs" in refused(model, chosen, (inputs, targets))
    prune(model, chosen, (inputs[:32], targets[:32]))


def test_a_network_that_takes_just_so_many_at_a_time() -> None:
    class Fixed(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.view(64, 12)

    model = nn.Sequential(Fixed(), *mlp(12, 8, 4))
    prune(model, recipe(retrain={"name": "fine_tune", "training": {"epochs": 1, "batch_size": 64}}), good())


@pytest.mark.parametrize("train", [True, False])
def test_looking_changes_nothing(train: bool) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()), persistent=False)
            self.drop = nn.Dropout()

        def forward(self, inputs: Tensor) -> Tensor:
            self.seen = self.seen + 1  # another tensor than before
            return self.drop(inputs)

    model = nn.Sequential(Counting(), convnet())
    model[1][1].eval()
    before, own = copied(model), model[0].seen
    modes, generator = [module.training for module in model.modules()], torch.get_rng_state()
    with looking_only(model, train=train):
        model(images()[0])
        assert float(model[0].seen) == 1
    assert same(before, copied(model))
    assert model[0].seen is own
    assert float(own) == 0
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(generator, torch.get_rng_state())


def test_a_shuffling_loader_gives_what_it_gives_anyway() -> None:
    def loader() -> DataLoader:  # type: ignore[type-arg]
        return DataLoader(
            TensorDataset(*good()), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(3)
        )

    tried = LoaderBatches(loader())
    for _ in range(2):
        tried.first(8)
    for one, other in zip(tried.epoch(0, 16, 0), loader(), strict=True):
        assert torch.equal(one.inputs, other[0])


def test_all_first_examples_are_given_out_as_they_are() -> None:
    inputs, targets = good()
    first = TensorBatches(inputs, targets.int()).first(5)
    assert torch.equal(first.inputs, inputs[:5])
    assert first.targets.dtype == torch.int64
    assert LoaderBatches(Empty()).first(5) is None


class Empty:
    def __iter__(self) -> Iterator[Data]:
        return iter(())


# ---- a step that fails in the middle -----------------------------------------------------------------------


THREE = {"name": "linear", "sparsity": 0.6, "steps": 3}
TRAINED = {"name": "fine_tune", "training": {"epochs": 1, "batch_size": 16}}


def test_a_training_that_diverges_leaves_the_network_as_it_was() -> None:
    training = {"epochs": 3, "lr": 1e20, "optimizer": "sgd"}
    chosen = recipe(retrain={"name": "fine_tune", "training": training})
    model = convnet()
    before = copied(model)
    with pytest.raises(PrunekitError, match="lower the learning rate"):
        prune(model, chosen, images())
    assert same(before, copied(model))


@pytest.mark.parametrize("failure", [ValueError("mine"), KeyboardInterrupt()])
@pytest.mark.parametrize("settings", [{}, {"retrain": TRAINED}, {"schedule": THREE}])
def test_measuring_that_fails_leaves_the_network_as_it_was(
    settings: dict[str, object], failure: BaseException
) -> None:
    calls = []

    def evaluate(model: nn.Module) -> dict[str, float]:
        calls.append(1)
        if len(calls) == len(chosen.schedule.sparsities()):
            raise failure
        return {}

    chosen = recipe(**settings)
    model = convnet()
    before = copied(model)
    with pytest.raises(type(failure)):
        prune(model, chosen, images(), evaluate=evaluate)
    assert same(before, copied(model))


def test_a_session_whose_step_fails_is_as_before_it_and_goes_on() -> None:
    chosen = recipe(
        schedule=THREE,
        retrain=TRAINED,
        score="weight_gradient",
        rank="once",
        stop={"name": "error_limit", "increase": 10.0},
    )
    fail = [False, True, False, False]

    def evaluate(model: nn.Module) -> dict[str, float]:
        if fail.pop(0):
            raise ValueError("once")
        return {}

    plain, model = convnet(), convnet()
    session = Session(model, chosen, data=images())
    steps = session.run(evaluate=evaluate)
    next(steps)
    before, state = copied(model), without_times(session.state_dict())
    with pytest.raises(ValueError, match="once"):
        next(steps)
    assert same(before, copied(model))
    assert without_times(session.state_dict()) == state
    for _ in session.run(evaluate=evaluate):
        pass
    prune(plain, chosen, images())
    assert same(copied(plain), copied(model))


def without_times(state: dict[str, Any]) -> str:
    state = copy.deepcopy(state)
    for record in state["history"]:
        record.pop("seconds")
    state.pop("sha256")
    return str(state)


def test_nothing_is_copied_where_nothing_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("prunekit.pruning.session.Snapshot", lambda model: made.append(1))
    prune(mlp(12, 8, 4), recipe())
    assert made == []


@pytest.mark.parametrize("seed", [True, 1.5, "1", None, 2**63, 2**80, -(2**63) - 1, float("nan")])
def test_seeds_that_are_none(seed: object) -> None:
    said = refused_seed(seed)
    assert "seed = " in said
    assert "at least -9,223,372,036,854,775,808" in said


def refused_seed(seed: object) -> str:
    with pytest.raises(InputError) as caught:
        prune(mlp(12, 8, 4), recipe(), seed=seed)  # type: ignore[arg-type]
    return str(caught.value)


def test_numbers_of_numpy_are_those_of_python() -> None:
    import numpy as np

    one, other = mlp(12, 8, 4), mlp(12, 8, 4)
    prune(one, METHODS["random"](sparsity=0.5), seed=3)
    prune(other, METHODS["random"](sparsity=np.float64(0.5)), seed=np.int64(3))  # type: ignore[arg-type]
    assert same(copied(one), copied(other))
