"""Code that a text names is imported and called only if the user allows its module."""

import sys

import pytest
import yaml

from prunekit import Recipe
from prunekit.errors import InputError
from prunekit.models import ModelSettings, create
from prunekit.parts.scores import Magnitude, Score
from prunekit.permission import Named, Permission, allowing, import_object
from prunekit.study import Study, StudySuite, load_study
from prunekit.training import Training
from tiny_study import settings, write_study

STRANGER = """
from pathlib import Path
from torch import nn
from prunekit.parts.scores import Magnitude

Path(__file__).with_name("RAN").touch()


class Sly(Magnitude):
    name = "sly"


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
"""
NAMES = ("stranger:Sly", "stranger:Net", "subprocess:getoutput", "os:system", "builtins:exec")


@pytest.fixture
def stranger(tmp_path, monkeypatch):
    """Somebody else's module, which Python would find; the path that says whether it has run."""
    (tmp_path / "stranger.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path / "RAN"
    sys.modules.pop("stranger", None)


def recipe_of(family, part):
    return {"schedule": {"name": "one_shot", "sparsity": 0.5}, family: part}


def study_of(tmp_path, **changes):
    return load_study(str(write_study(tmp_path / "s.yaml", **changes)))


FAMILIES = ("score", "granularity", "allocation", "schedule", "selection", "repair", "retrain", "stop")
DOORS = {
    "model": lambda name, _: ModelSettings.parse(name),
    "model with settings": lambda name, _: ModelSettings.parse({"name": name, "cmd": "true"}),
    "model, constructed": lambda name, _: ModelSettings(name=name),
    "create": lambda name, _: create(name, (4,), 3, seed=0),
    "part": lambda name, _: Score.build(name),
    "recipe, constructed": lambda name, _: Recipe(score=name, schedule={"name": "one_shot", "sparsity": 0.5}),
    **{
        f"{family} of a recipe": lambda name, _, family=family: Recipe.from_yaml(
            yaml.safe_dump(recipe_of(family, {"name": name}))
        )
        for family in FAMILIES
    },
    "regularizer of a training": lambda name, _: Training.parse({"epochs": 1, "regularize": [name]}),
    "regularizer of a recipe": lambda name, _: Recipe.parse(
        recipe_of("retrain", {"name": "fine_tune", "training": {"epochs": 1, "regularize": [{"name": name}]}})
    ),
    "model of a study": lambda name, path: study_of(path, model={"name": name}),
    "recipe of a study": lambda name, path: study_of(
        path, methods={"a": {"recipe": recipe_of("score", name)}}, controls={}
    ),
    "method of a study": lambda name, path: study_of(
        path,
        methods={"a": {"method": "iterative_magnitude", "settings": {"training": {"regularize": [name]}}}},
        controls={},
    ),
    "sweep of a study": lambda name, path: study_of(
        path,
        methods={"a": {"recipe": recipe_of("score", "random"), "sweep": {"score": ["random", name]}}},
        controls={},
    ),
    "training of a study": lambda name, path: study_of(path, training={"epochs": 1, "regularize": [name]}),
    "change of a study": lambda name, path: load_study(str(write_study(path / "s.yaml")), [f"model={name}"]),
    "variant of a suite": lambda name, _: StudySuite.parse(
        {
            **{key: value for key, value in settings().items() if key != "model"},
            "variants": {"one": {"model": "mlp"}, "two": {"model": name}},
        }
    ),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("door", DOORS)
def test_nothing_is_imported_that_nobody_allowed(door, name, stranger, tmp_path):
    with pytest.raises(InputError) as caught:
        DOORS[door](name, tmp_path)
    module = name.partition(":")[0]
    assert f"'{name}' would import the module {module} and call its " in str(caught.value)
    assert f'--allow {module} on the command line, allow=["{module}"] in Python' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not stranger.exists()
    assert "stranger" not in sys.modules


def test_a_model_of_an_allowed_module_is_made_and_needs_no_second_word(stranger, tmp_path):
    settings = ModelSettings.parse("stranger:Net", allow=["stranger"])
    assert stranger.exists()
    assert type(create(settings, (4,), 3, seed=0)).__name__ == "Net"
    assert type(create("stranger:Net", (4,), 3, seed=0, allow=["stranger"])).__name__ == "Net"
    with pytest.raises(InputError, match="nobody has allowed"):  # the name alone still does
        ModelSettings.parse(settings.to_dict())


def test_what_is_allowed_for_one_text_is_not_for_the_next(stranger):
    Recipe.from_yaml(yaml.safe_dump(recipe_of("score", "stranger:Sly")), allow=["stranger"])
    with pytest.raises(InputError, match="module stranger and call its Net"):
        create("stranger:Net", (4,), 3, seed=0)


# ---- which modules are allowed -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("allowed", "module", "covered"),
    [
        ("pack", "pack", True),
        ("pack", "pack.nets.small", True),
        ("pack.nets", "pack.nets.small", True),
        ("pack.nets", "pack", False),
        ("pack.nets", "pack.others", False),
        ("pack", "packs", False),
        ("packs", "pack", False),
        ("my-nets", "my-nets", True),
    ],
)
def test_a_package_stands_for_what_is_in_it(allowed, module, covered):
    assert Permission([allowed]).covers(Named(module, "f")) is covered
    with allowing([allowed]), allowing() as inner:
        assert inner.covers(Named(module, "f")) is covered


@pytest.mark.parametrize("module", ["", ".", "a.", "*", "a:b", "a b", "../a", "a/b", "3", None, 3, b"a"])
def test_what_is_no_module_cannot_be_allowed(module):
    with pytest.raises(InputError, match="cannot be allowed: write the name of a module alone"):
        Recipe.parse(recipe_of("score", "random"), allow=[module])


def test_a_module_of_a_package_is_reached_by_the_package(tmp_path, monkeypatch):
    (tmp_path / "pack_of_nets").mkdir()
    (tmp_path / "pack_of_nets" / "__init__.py").write_text("")
    (tmp_path / "pack_of_nets" / "small.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    for allowed in ("pack_of_nets", "pack_of_nets.small"):
        assert ModelSettings.parse("pack_of_nets.small:Net", allow=[allowed]).own == {}
    with pytest.raises(InputError, match="nobody has allowed"):
        ModelSettings.parse("pack_of_nets.small:Net", allow=["small", "pack_of_nets.others"])


class Asked:
    """Remembers what it was asked about, and has one answer."""

    def __init__(self, answer):
        self.answer, self.names = answer, []

    def __call__(self, named):
        self.names.append(str(named))
        return self.answer


@pytest.mark.parametrize("answer", [True, False])
def test_one_is_asked_once_about_a_module(answer, stranger, tmp_path):
    asked = Asked(answer)
    methods = {name: {"recipe": recipe_of("score", "stranger:Sly")} for name in "ab"}
    with allowing(ask=asked):
        for _ in range(2):
            if answer:
                study_of(tmp_path, model="stranger:Net", methods=methods, controls={})
            else:
                with pytest.raises(InputError, match="nobody has allowed"):
                    study_of(tmp_path, model="stranger:Net", methods=methods, controls={})
    assert asked.names == ["stranger:Net"]
    assert stranger.exists() is answer


def test_nobody_is_asked_about_what_is_built_in_or_allowed(stranger):
    asked = Asked(False)
    with allowing(["stranger"], ask=asked):
        Recipe.parse(recipe_of("score", "stranger:Sly"))
        create("mlp", (4,), 3, seed=0)
    assert asked.names == []


# ---- what may be called --------------------------------------------------------------------------

FACTORIES = """
from __future__ import annotations

import functools
import os
import subprocess
from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from somewhere import Hint


class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)

    @classmethod
    def made(cls, odd: Hint = None) -> Net:
        return cls()

    class Inner(nn.Identity):
        pass


def noisy(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner


@noisy
def wrapped() -> "Net":
    return Net()


def bare(cmd="true"):
    raise SystemExit("called")


def number() -> int:
    raise SystemExit("called")


def unresolved() -> Hint:
    raise SystemExit("called")


def perhaps() -> Net | None:
    raise SystemExit("called")


class Plain:
    def __init__(self):
        raise SystemExit("called")


class Caller(nn.Module):
    def __call__(self) -> nn.Module:
        raise SystemExit("called")


net = Net()
caller = Caller()
partial = functools.partial(bare)
anonymous = lambda: Net()
"""


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "factories_of_mine.py").write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    with allowing(["factories_of_mine", "subprocess", "os", "builtins"]):
        yield "factories_of_mine"
    sys.modules.pop("factories_of_mine", None)


@pytest.mark.parametrize("name", ["Net", "Net.made", "Net.Inner", "wrapped"])
def test_what_says_that_it_makes_a_model_is_called(factories, name):
    assert create(f"{factories}:{name}", (4,), 3, seed=0) is not None


@pytest.mark.parametrize(
    "name",
    ["bare", "number", "unresolved", "perhaps", "Plain", "net", "caller", "partial", "anonymous", "__doc__"],
)
def test_nothing_else_is_called_though_its_module_is_allowed(factories, name):
    with pytest.raises(InputError, match=f"'{factories}:{name}' is not called, because nothing says"):
        create(f"{factories}:{name}", (4,), 3, seed=0)


@pytest.mark.parametrize("name", ["subprocess:getoutput", "os:system", "builtins:exec"])
@pytest.mark.usefixtures("factories")
def test_nor_functions_that_come_with_python(name):
    with pytest.raises(InputError, match=f"'{name}' is not called"):
        create({"name": name, "cmd": "true"}, (4,), 3, seed=0)
    with pytest.raises(InputError, match=f"'{name}' is not a score"):
        Score.build(name)


def test_what_a_module_has_imported_is_not_allowed_with_it(factories):
    with pytest.raises(InputError, match=r"leads into the module subprocess: write subprocess:name"):
        create(f"{factories}:subprocess.getoutput", (4,), 3, seed=0)


def test_import_follows_dots():
    with allowing(["collections"]):
        assert import_object("collections.abc:Mapping.get") is not None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("json", "is not of the form package.module:name"),
        (":x", "is not of the form"),
        ("json:", "is not of the form"),
        ("json:a b", "is not of the form"),
        (".json:x", "is not of the form"),
        ("js\non:x", "is not of the form"),
        ("no_such_module_at_all:x", "cannot import 'no_such_module_at_all'.*ModuleNotFoundError"),
        ("json:nothing", "the module 'json' has no 'nothing'"),
    ],
)
def test_what_cannot_be_imported(path, message):
    with allowing(["json", "no_such_module_at_all"]), pytest.raises(InputError, match=message) as caught:
        import_object(path)
    assert "\n" not in str(caught.value)


def test_another_family_is_refused():
    with pytest.raises(InputError, match=r"is not a score \(a subclass of Score\)"), allowing(["prunekit"]):
        Score.build("prunekit.parts.schedule:OneShot")


# ---- parts that the program has defined ----------------------------------------------------------


class Defined(Magnitude):
    """A part of this program."""

    name = "defined_in_test_permission"

    class Inner(Magnitude):
        """One inside another."""


def test_a_part_that_the_program_has_defined_needs_no_word(monkeypatch):
    monkeypatch.setattr("prunekit.parts.base.import_object", None)
    for part in (Defined, Defined.Inner):
        assert type(Score.build(f"{__name__}:{part.__qualname__}")) is part
        built = Recipe.parse(recipe_of("score", {"name": f"{__name__}:{part.__qualname__}"}))
        assert Recipe.from_yaml(built.to_yaml()) == built


# ---- studies -------------------------------------------------------------------------------------


def test_a_study_says_which_code_it_names(stranger, tmp_path):
    method = {"recipe": recipe_of("score", "stranger:Sly")}
    values = settings(model="stranger:Net", methods={"a": method}, controls={})
    study = Study.parse(values, allow=["stranger", "numpy"])
    assert study.allow == ("stranger",)
    assert "allow" not in str(study.to_dict())
    again = Study.parse(study.to_dict(), allow=study.allow)
    assert again.network_key == study.network_key
    assert [cell.key for cell in again.cells] == [cell.key for cell in study.cells]
    assert again == study


def test_also_where_the_program_had_it_already(tmp_path):
    method = {"recipe": recipe_of("score", f"{__name__}:Defined")}
    assert Study.parse(settings(methods={"a": method}, controls={})).allow == (__name__,)


def test_permission_changes_no_hash_of_what_needs_none():
    plain, allowed = Study.parse(settings()), Study.parse(settings(), allow=["numpy"])
    assert plain == allowed
    assert plain.allow == allowed.allow == ()
    assert plain.digest() == allowed.digest()
    assert plain.network_key == allowed.network_key
