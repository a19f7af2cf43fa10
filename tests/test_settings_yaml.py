"""YAML from anybody: what is plain is read as ever, all else ends in one line, before it takes memory."""

import math
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plain_yaml import MAX_BYTES, MAX_DEPTH, MAX_VALUES, load_yaml, read_yaml, with_assignments
from prunekit.recipe import Recipe
from prunekit.settings import with_value
from prunekit.study import Study, StudySuite
from prunekit.study.spec import MAX_RECIPES
from tiny_study import one_shot, settings, tickets

TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | TEXTS,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(TEXTS, inside, max_size=4),
    max_leaves=20,
)


@given(PLAIN)
def test_plain_values_are_read_as_by_the_safe_loader(values):
    text = yaml.safe_dump(values, allow_unicode=True)
    assert load_yaml(text) == values == yaml.safe_load(text)


def test_anchors_and_merge_keys_are_filled_in():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]\nd: {<<: [{x: 5}, *a]}"
    assert load_yaml(text) == yaml.safe_load(text)
    assert load_yaml(text)["b"] == {"x": 1, "y": 3}


def nested(width: int, levels: int, item: str = "[{}]") -> str:
    """Anchors of which each stands for as many of the one before."""
    lines = ["a0: &a0 " + ("{k: 1}" if "<<" in item else "[k]")]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} " + item.replace("{}", ", ".join([f"*a{level - 1}"] * width)))
    return "\n".join(lines)


BOMBS = {
    "billion laughs": (nested(10, 12), f"more than {MAX_VALUES:,} values"),
    "merged laughs": (nested(10, 12, "{<<: [{}]}"), f"more than {MAX_VALUES:,} values"),
    "a long text, many times": (
        f"[&a {'x' * 200_000}, {', '.join(['*a'] * 10_000)}]",
        "the texts have more than 1,048,576 characters",
    ),
    "a chain of anchors": (nested(1, 8_000), f"nested more than {MAX_DEPTH} deep"),
    "deep lists": ("[" * 100_000, f"nested more than {MAX_DEPTH} deep"),
    "deep mappings": ("{a: " * 60_000, f"nested more than {MAX_DEPTH} deep"),
    "deep dashes": ("- " * 100_000, f"nested more than {MAX_DEPTH} deep"),
    "deep keys": ("? " * 100_000, f"nested more than {MAX_DEPTH} deep"),
    "many values": (f"[{'1,' * 100_000}]", f"more than {MAX_VALUES:,} values"),
    "a large text": ("a" * (MAX_BYTES + 1), "more than 256 KiB"),
    "a large text of two bytes a character": ("é" * (MAX_BYTES // 2 + 1), "more than 256 KiB"),
    "a list in itself": ("&a [*a]", "line 1: an anchor stands for something that holds it"),
    "a mapping in itself": ("a: &a\n  b: [*a]", "line 2: an anchor stands for something that holds it"),
    "a mapping merged into itself": ("&a {<<: *a}", "an anchor stands for something that holds it"),
    "a number of 5,000 digits": ("a: " + "9" * 5_000, "a number has more than 64 characters"),
    "a number of base 60": ("a: 1" + ":30" * 60_000, "a number has more than 64 characters"),
    "a number of 65 bits": ("a: 18446744073709551616", "more than 64 bits"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_end_in_one_line(bomb):
    text, message = BOMBS[bomb]
    with pytest.raises(InputError, match=message) as caught:
        load_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_a_bomb_is_refused_before_it_is_filled_in(monkeypatch):
    monkeypatch.setattr(yaml.SafeLoader, "construct_document", lambda *_: pytest.fail("it was filled in"))
    with pytest.raises(InputError):
        load_yaml(BOMBS["merged laughs"][0])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 2001-01-01", "line 1: a value of the kind 'timestamp' is none of the plain ones"),
        ("a: !!binary aGVsbG8=", "kind 'binary'"),
        ("!!set {a, b}", "kind 'set'"),
        ("!!omap [a: 1]", "kind 'omap'"),
        ("!!pairs [a: 1]", "kind 'pairs'"),
        ("b: 1\na: !!python/object/apply:os.system [ls]", "line 2: .*python/object/apply:os.system"),
        ("!!python/name:os.system ''", "python/name"),
        ("!!python/module:antigravity ''", "python/module"),
        ("!mine 1", "kind '!mine'"),
        ("a: =", "kind 'value'"),
        ("1: a", "line 1: the key 1 is not a text: write it in quotes"),
        ("~: a", "the key ~ is not a text"),
        ("yes: a", "the key yes is not a text"),
        ("[a]: b", "a key is a list or a mapping"),
        ("? {a: 1}\n: b", "a key is a list or a mapping"),
        ("!!int word", "'word' is not what its tag says"),
        ("!!int ''", "'' is not what its tag says"),
        ("!!bool maybe", "'maybe' is not what its tag says"),
        ("!!str [a]", "expected a scalar node"),
        ("<<: 3", "expected a mapping"),
        ("a: <<", "could not determine a constructor"),
        ("a\n\x07", r"line 2: the character U\+0007"),
        ('a: "\\x07"', r"line 1: a text holds the character U\+0007"),
        ('a: "\\0"', r"U\+0000"),
        ("a: \ud800", r"U\+D800"),
        ('a: "\\ud800"', r"U\+D800"),
        ('a: "\\UFFFFFFFF"', "an escape that stands for no character"),
        ("*a", "undefined alias"),
        ("a: 1\na: 2", "line 2: the key 'a' is there twice"),
        ("a\n---\nb", "single document"),
    ],
)
def test_what_is_not_plain_is_refused(text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_yaml(text)
    assert len(str(caught.value).splitlines()) == 1


def test_messages_have_an_end():
    with pytest.raises(InputError) as caught:
        load_yaml("*" + "a" * 200_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"a: \xff", b"schedule: [", b"\xe9" * 10])
def test_files_that_are_no_yaml(tmp_path, content):
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"r\.yaml is not valid YAML"):
        Recipe.from_yaml(path)


@pytest.mark.parametrize("character", ["a", "é"])  # the limit lies within a character
def test_no_more_of_a_file_is_read_than_may_be_there(tmp_path, character):
    path = tmp_path / "r.yaml"
    path.write_text("a" + character * MAX_BYTES, encoding="utf-8")
    with pytest.raises(InputError, match=r"r\.yaml is not valid YAML: there are more than 256 KiB of it"):
        read_yaml(path)


def sweep(**lengths: int) -> dict:
    return {
        **one_shot("magnitude", 0.5),
        "sweep": {key: [0.5] * length for key, length in lengths.items()},
    }


@pytest.fixture
def no_recipe(monkeypatch):
    """Fails where a recipe is made."""
    monkeypatch.setattr(Recipe, "parse", lambda *_, **__: pytest.fail("a recipe was made"))


MANY = f"more recipes than the {MAX_RECIPES:,}"


@pytest.mark.usefixtures("no_recipe")
@pytest.mark.parametrize(
    "methods",
    [
        {"a": sweep(**{f"schedule.k{n}": 2 for n in range(20_000)})},
        {"a": sweep(ignore=300, targets=300)},
        {f"m{n}": sweep(ignore=101, targets=10) for n in range(10)},
        {f"m{n}": {**sweep(), "sweep": [{"ignore": []}] * 1_001} for n in range(10)},
    ],
    ids=["20,000 lists", "two lists", "ten methods", "ten lists of points"],
)
def test_too_many_recipes_are_counted_and_not_made(methods):
    with pytest.raises(InputError, match=MANY):
        Study.parse(settings(methods=methods, controls={}))


def test_variants_of_a_suite_are_counted_together(monkeypatch):
    monkeypatch.setattr("prunekit.study.spec.MAX_RECIPES", 5)
    methods = {"a": {**sweep(), "sweep": {"schedule.sparsity": [0.1, 0.2, 0.3]}}}
    values = settings(variants={"one": {}, "two": {}}, methods=methods, controls={})
    with pytest.raises(InputError, match="more recipes than the 5"):
        StudySuite.parse(values)
    assert Study.parse({key: value for key, value in values.items() if key != "variants"})


def test_a_control_counts_as_many_recipes_as_its_method(monkeypatch):
    monkeypatch.setattr("prunekit.study.spec.MAX_RECIPES", 5)
    methods = {"a": {**sweep(), "sweep": {"schedule.sparsity": [0.1, 0.2, 0.3]}}, "b": {"random_of": "a"}}
    with pytest.raises(InputError, match="more recipes than the 5"):
        Study.parse(settings(methods=methods, controls={}))


@pytest.mark.parametrize("seeds", [0, -1, 1_001, 2**63, 10**400, 1.5, math.inf])
def test_absurd_numbers_of_seeds(seeds):
    with pytest.raises(InputError, match="seeds"):
        Study.parse(settings(seeds=seeds))


@pytest.mark.parametrize(
    ("key", "value"), [("epochs", 1e308), ("batch_size", 2**63), ("iterations", 2**63), ("lr", 1e308)]
)
def test_absurd_training(key, value):
    with pytest.raises(InputError, match=key):
        Study.parse(settings(training={key: value}))


# ---- assignments ---------------------------------------------------------------------------------


def test_assignments_change_nested_values_and_leave_the_original():
    values = settings()
    found = with_assignments(
        values,
        [
            "training.epochs=3",
            "training.regularize=[{name: l2, strength: 0.1}]",
            "methods.tickets.recipe.schedule.steps=5",
            "title=a = b",
            "model=lenet5",
        ],
    )
    assert found["training"] == {
        **values["training"],
        "epochs": 3,
        "regularize": [{"name": "l2", "strength": 0.1}],
    }
    assert found["methods"]["tickets"]["recipe"]["schedule"]["steps"] == 5
    assert found["title"] == "a = b"
    assert found["model"] == "lenet5"
    assert values == settings()


def test_an_assignment_below_a_name_keeps_the_name():
    assert with_assignments(settings(), ["dataset.seed=3"])["dataset"] == {"name": "iris", "seed": 3}


def test_an_assignment_reaches_a_label_with_dots():
    values = settings(methods={"9.5 %": tickets()})
    found = with_assignments(values, ["methods.9.5 %.recipe.schedule.steps=7"])
    assert found["methods"]["9.5 %"]["recipe"]["schedule"]["steps"] == 7


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("training", "write key=value"),
        ("=3", "write key=value"),
        ("", "write key=value"),
        ("training.=3", "'training.' is not a key"),
        (".epochs=3", "'.epochs' is not a key"),
        ("training..epochs=3", "'.epochs' is not a key"),
        ("seeds.x=3", "leads through 'seeds', which holds 2"),
        ("training.epochs=[1", "not valid YAML"),
        ("training.epochs={a: 1, a: 2}", "not valid YAML"),
    ],
)
def test_an_assignment_of_another_form_is_refused(assignment, message):
    with pytest.raises(InputError, match=re.escape(message)):
        with_assignments(settings(), [assignment])


@given(st.dictionaries(st.sampled_from("abcd"), st.integers()), st.lists(st.sampled_from("abcd"), min_size=1))
def test_with_value_is_found_where_it_was_put(inner, path):
    values = {"a": {"b": inner}}
    try:
        found = with_value(values, ".".join(path), "new")
    except InputError:  # the path leads through a number
        return
    for step in path:
        found = found[step]
    assert found == "new"
    assert values == {"a": {"b": inner}}
