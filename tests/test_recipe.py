import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError, ModelError
from prunekit.parts.retrain import FineTune, Rewind
from prunekit.parts.schedule import AllocationDecides, Geometric, Linear, OneShot
from prunekit.parts.scores import Gradient, Magnitude
from prunekit.plain_yaml import read_yaml
from prunekit.recipe import Recipe
from prunekit.training import Training
from small_nets import copied, mlp, recipe, same

RATE = st.floats(0.05, 0.95)
SCORES = st.sampled_from(
    ["magnitude", "random", {"name": "magnitude", "relative_to": "layer_norm"}, "gradient", "weight_gradient"]
)
STATED = st.tuples(
    st.sampled_from(
        ["global", "per_layer", "erk", "sensitivity", {"name": "per_layer", "output_rate": 0.5, "floor": 0.0}]
    ),
    st.one_of(
        st.builds(lambda s: {"name": "one_shot", "sparsity": s}, RATE),
        st.builds(lambda s, n: {"name": "linear", "sparsity": s, "steps": n}, RATE, st.integers(1, 9)),
        st.builds(lambda r, n: {"name": "geometric", "rate": r, "steps": n}, RATE, st.integers(1, 9)),
        st.builds(lambda s, n: {"name": "cubic", "sparsity": s, "steps": n}, RATE, st.integers(1, 9)),
    ),
)
DECIDED = st.tuples(
    st.one_of(
        st.builds(lambda q: {"name": "threshold", "q": q}, RATE),
        st.builds(lambda s: {"name": "manual", "sparsities": {"2": s, "re:.*": 0.1}}, RATE),
        st.just("none"),
    ),
    st.builds(lambda n: {"name": "allocation_decides", "steps": n}, st.integers(1, 5)),
)
TRAINING = st.builds(
    lambda epochs, optimizer, lr, regularize: {
        "epochs": epochs,
        "optimizer": optimizer,
        "lr": lr,
        "regularize": regularize,
    },
    st.floats(0, 5),
    st.sampled_from(["sgd", "adam", "adamw"]),
    st.floats(1e-7, 1e3),
    st.lists(st.sampled_from(["dropout", {"name": "l1", "strength": 1e-5}]), max_size=2),
)
RETRAIN = st.one_of(
    st.just("none"),
    st.builds(lambda training: {"name": "fine_tune", "training": training}, TRAINING),
    st.builds(lambda step, t: {"name": "rewind", "step": step, "training": t}, st.integers(0, 9), TRAINING),
)
RECIPES = st.builds(
    lambda parts, score, **rest: {
        "allocation": parts[0],
        "schedule": parts[1],
        "score": "magnitude" if "q" in parts[0] else score,  # which a threshold is a multiple of
        **rest,
    },
    STATED | DECIDED,
    SCORES,
    retrain=RETRAIN,
    order=st.sampled_from(["all", "forward", "backward"]),
    targets=st.none() | st.just(["Linear"]),
    ignore=st.sampled_from([[], ["0"], ["re:2"]]),
    calibration=st.integers(1, 5000),
    regrow=st.booleans(),
)


def reordered(values):
    if isinstance(values, dict):
        return {key: reordered(values[key]) for key in reversed(list(values))}
    return [reordered(value) for value in values] if isinstance(values, list) else values


@given(RECIPES)
def test_yaml_round_trip_is_exact(values):
    built = Recipe.parse(values)
    again = Recipe.from_yaml(built.to_yaml())
    assert again == built
    assert again.to_yaml() == built.to_yaml()
    assert again.digest() == built.digest()


@given(RECIPES)
def test_the_hash_does_not_depend_on_the_order_of_keys(values):
    built = Recipe.parse(values)
    assert Recipe.parse(reordered(built.to_dict())).digest() == built.digest()
    assert Recipe.parse(reordered(values)).digest() == built.digest()


def test_python_and_yaml_are_the_same():
    built = Recipe(
        score=Gradient(),
        schedule=Geometric(rate=0.2, steps=3),
        retrain=Rewind(step=5, training=Training(iterations=20, optimizer="sgd", lr=0.1)),
        ignore=("fc3",),
    )
    text = """
        score: gradient
        schedule: {name: geometric, rate: 0.2, steps: 3}
        retrain:
          name: rewind
          step: 5
          training: {iterations: 20, optimizer: sgd, lr: 1e-1}
        ignore: [fc3]
    """
    assert Recipe.from_yaml(text) == built


def test_parts_that_differ_make_another_hash():
    digests = {
        recipe().digest(),
        recipe(score="random").digest(),
        recipe(regrow=True).digest(),
        recipe(allocation={"name": "global", "floor": 0}).digest(),
        recipe(retrain={"name": "fine_tune", "training": {"epochs": 1}}).digest(),
        recipe(retrain={"name": "fine_tune", "training": {"iterations": 1}}).digest(),
    }
    assert len(digests) == 6


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"shedule": 3},
            "unknown key 'shedule'; did you mean 'schedule'. allowed keys are: .*schedule, ",
        ),
        (
            {"schedule": {"name": "one_shot", "sparsity": 40}},
            "recipe: schedule: .*40 is no sparsity.*0.4 for 40",
        ),
        ({"schedule": {"name": "one_shot", "sparsity": 1.0}}, "1 is no sparsity"),
        ({"schedule": {"name": "one_shot", "sparsity": 0}}, "sparsity 0, which removes nothing"),
        ({"schedule": {"name": "one_shot", "sparsty": 0.4}}, "one_shot: unknown key 'sparsty'"),
        (
            {"score": "magnitud"},
            "score: there is no score 'magnitud'; did you mean 'magnitude'. names are: ",
        ),
        ({"score": None}, "expected the name of a score"),
        (
            {"allocation": {"name": "threshold", "q": 1}},
            "'threshold' decides the amount itself: use.*'allocation_decides'",
        ),
        (
            {"schedule": "allocation_decides"},
            "'allocation_decides' states no sparsity, which the allocation 'global' needs",
        ),
        ({"order": "sideways"}, "recipe: order = 'sideways': .*'all', 'forward' or 'backward'"),
        ({"calibration": 0}, "recipe: calibration = 0"),
        ({"retrain": {"name": "fine_tune", "training": {"lr": 0}}}, "training: lr = 0"),
        ({"retrain": {"name": "fine_tune", "training": {"lr": 1, "x": 1}}}, "training: unknown key 'x'"),
        (
            {"retrain": {"name": "fine_tune", "training": {"epochs": 1, "iterations": 1}}},
            "either 'epochs' or",
        ),
        (
            {"retrain": {"name": "fine_tune", "training": {"regularize": ["l3"]}}},
            "there is no regularizer 'l3'; names are: dropout, group_lasso, l0, l1, l2",
        ),
        (
            {"retrain": {"name": "fine_tune", "training": {"regularize": [{"name": "l1"}]}}},
            "l1: the key 'strength' is missing",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_place(settings, message):
    with pytest.raises(InputError, match=message):
        recipe(**settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text: expected a mapping of settings, got NoneType"),
        ("- a", "expected a mapping of settings, got list$"),
        ("mine.yaml", r"got str; to read a file, give pathlib.Path\('mine.yaml'\)"),
        ("score: [", "the text is not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "is not valid YAML"),
    ],
)
def test_bad_yaml(text, message):
    with pytest.raises(InputError, match=message):
        Recipe.from_yaml(text)


def test_a_key_that_is_given_twice_is_refused():
    text = "score: random\nschedule: {name: one_shot, sparsity: 0.5}\nscore: magnitude\n"
    with pytest.raises(InputError, match="the key 'score' is there twice"):
        Recipe.from_yaml(text)


def test_yaml_files(tmp_path):
    path = tmp_path / "recipe.yaml"
    with pytest.raises(InputError, match=r"cannot read .*recipe\.yaml: No such file"):
        Recipe.from_yaml(path)
    path.write_text(recipe().to_yaml())
    assert Recipe.from_yaml(path) == recipe()
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"recipe\.yaml is not valid YAML"):
        read_yaml(path)
    assert yaml.safe_load(recipe().to_yaml())["score"] == {"name": "magnitude", "relative_to": "nothing"}


class TestPlan:
    def test_levels_by_layers(self):
        plan = recipe(schedule={"name": "linear", "sparsity": 0.5, "steps": 2}, order="backward").plan(
            mlp(4, 4, 4)
        )
        assert [(step.number, step.round, step.layers) for step in plan.steps] == [
            (1, 1, ("2.weight",)),
            (2, 1, ("0.weight",)),
            (3, 2, ("2.weight",)),
            (4, 2, ("0.weight",)),
        ]
        assert [(step.previous, step.sparsity) for step in plan.steps] == [(0, 0.25)] * 2 + [(0.25, 0.5)] * 2

    def test_all_at_once(self):
        plan = recipe(schedule={"name": "allocation_decides", "steps": 3}, allocation="none").plan(
            mlp(4, 4, 4)
        )
        assert [step.layers for step in plan.steps] == [("0.weight", "2.weight")] * 3
        assert {step.rounds for step in plan.steps} == {3}

    @pytest.mark.parametrize("allocation", ["global", "per_layer", "erk", "sensitivity"])
    def test_the_floor_is_checked(self, allocation):
        chosen = recipe(schedule={"name": "one_shot", "sparsity": 0.999}, allocation=allocation)
        with pytest.raises(InputError, match="floor"):
            chosen.plan(mlp(4, 4, 4))
        free = recipe(
            schedule={"name": "one_shot", "sparsity": 0.999}, allocation={"name": allocation, "floor": 0}
        )
        assert free.plan(mlp(4, 4, 4))

    def test_planning_changes_nothing(self):
        model = mlp(4, 4, 4)
        before = copied(model)
        recipe().plan(model)
        assert same(before, copied(model))

    def test_nan_is_refused(self):
        model = mlp(4, 4)
        torch.nn.init.constant_(model[0].weight, float("nan"))
        with pytest.raises(ModelError, match=r"0\.weight holds NaN"):
            recipe().plan(model)


def test_needs():
    assert not recipe().needs_data
    assert recipe(score="gradient").needs_data
    assert recipe(allocation="sensitivity").needs_data
    assert Recipe(schedule=OneShot(sparsity=0.5)).score == Magnitude()
    assert FineTune().training == Training()
    assert Linear(sparsity=0.5, steps=1).sparsities() == (0.5,)
    assert AllocationDecides().steps == 1
