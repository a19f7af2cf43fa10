"""Mutated YAML files of recipes and studies: each is read as something valid or ends in one line.

Sources are the named studies and the recipes of all methods. Their values, keys, names and text are changed;
what is found valid must also survive being written and read again. Nothing may be imported or run.
"""

from __future__ import annotations

import copy
import random
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from harness import Case, main

from prunekit import methods
from prunekit.errors import PrunekitError
from prunekit.recipe import Recipe
from prunekit.study import Study, StudySuite, load_study
from prunekit.study import names as study_names

LINE = 2_000
"""The longest line that an error may be."""

MARKER = "module_that_writes_a_marker"
CODE = (
    "os:system",
    "subprocess:getoutput",
    "builtins:exec",
    "builtins:eval",
    "importlib:import_module",
    "antigravity:fly",
    "this:s",
    "turtle:Turtle",
    "torch:load",
    "torch.nn:Linear",
    "prunekit.settings:import_object",
    "prunekit.parts.scores:Magnitude",
    f"{MARKER}:Thing",
    f"{MARKER}.inner:Thing",
    f"prunekit:{MARKER}",
    "os.path:join.__globals__",
    "no_such_module:Thing",
    ":",
    "a:",
    ":b",
    "a:b:c",
    "../x:y",
    "a b:c",
)
NEVER_IMPORTED = ("antigravity", "this", "turtle", MARKER, f"{MARKER}.inner")

EXTREMES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    0.5,
    -0.0,
    1.5,
    1e-320,
    1e308,
    float("inf"),
    float("nan"),
    2**31,
    2**53 + 1,
    2**63 - 1,
    2**63,
    2**64,
    10**60,
    -(10**19),
    "",
    " ",
    "a",
    "é",
    "con",
    "../x",
    "a\nb",
    "a\tb",
    "~",
    "x" * 3_000,
    "1e309",
    "nan",
    "0x10",
    [],
    {},
    [[]],
    [{}],
    {"name": "x"},
    {"name": None},
    {"name": {}},
    [0.5, 0.5],
    [0.9, 0.1],
    list(range(40)),
)

RAW = (
    "!!python/object/apply:os.system ['true']",
    "!!python/name:os.system ''",
    "!!python/module:antigravity ''",
    "!!python/object/new:subprocess.Popen [[true]]",
    "!!binary aGVsbG8=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!timestamp 2001-01-01",
    "2001-01-01",
    "!!int word",
    "!!int ''",
    "!!bool maybe",
    "!!float x",
    "!mine {a: 1}",
    "!<tag:yaml.org,2002:python/tuple> [1]",
    "&self [*self]",
    "&self {a: *self}",
    "&self {<<: *self}",
    "{<<: [{a: 1}, {a: 2}]}",
    "{<<: 3}",
    "{<<: *nowhere}",
    "*nowhere",
    "[" * 500,
    "{a: " * 500,
    "[" * 60 + "]" * 60,
    "9" * 5_000,
    "1" + ":30" * 200,
    "0b" + "1" * 70,
    "1_0.5e+3",
    ".inf",
    "-.Inf",
    ".nan",
    "{1: a}",
    "{~: a}",
    "{[a]: b}",
    "? [a]\n: b",
    '"\\0"',
    '"\\ud800"',
    '"\\UFFFFFFFF"',
    "'" + "y" * 5_000 + "'",
    "[" + "1, " * 30_000 + "]",
    "[&t '" + "z" * 20_000 + "', " + "*t, " * 1_000 + "]",
    "=",
    "<<",
    "- a",
    "|\n  text\n",
    "%YAML 9.9",
)

ENDS = (" &a", " *a", " !!str", " #", ":", " {", " - ", "\t", " |", " >", "\u2028", "\x85")


def make_case(folder: Path) -> Case:
    """The function that runs a case: one mutated file, read."""
    sources = dict(_sources())
    labels = sorted(sources)
    _plant_marker(folder)
    for label in labels:  # what is imported on first use is there before imports are watched
        _read(label.startswith("study"), sources[label].encode(), folder / "source.yaml")

    def case(number: int) -> str:
        draw = random.Random(number)
        label, other = draw.choice(labels), draw.choice(labels)
        study = label.startswith("study")
        content = _mutated(draw, sources[label], sources[other])
        try:
            outcome = _read(study, content, folder / "case.yaml")
        except PrunekitError as error:
            _check_message(str(error))
            outcome = f"{'study' if study else 'recipe'} refused"
        imported = [name for name in NEVER_IMPORTED if name in sys.modules]
        assert not imported, f"{imported} was imported"
        return outcome

    return case


def _sources() -> Iterator[tuple[str, str]]:
    for name in study_names():
        text = (resources.files("prunekit.study") / "named" / f"{name}.yaml").read_text(encoding="utf-8")
        yield f"study {name}", text
    for name in methods.METHODS:
        yield f"recipe {name}", methods.recipe(name).to_yaml()


def _plant_marker(folder: Path) -> None:
    package = folder / MARKER
    package.mkdir(exist_ok=True)
    for file in ("__init__.py", "inner.py"):
        (package / file).write_text("open('marker', 'w')\nclass Thing: pass\n")
    sys.path.insert(0, str(folder))


def _read(study: bool, content: bytes, path: Path) -> str:
    """Read a file; what is valid is compared with what comes back when it is written."""
    path.write_bytes(content)
    if not study:
        recipe = Recipe.from_yaml(path)
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe, "the recipe is another one when it is read again"
        assert Recipe.parse(recipe.to_dict()).digest() == recipe.digest(), "the recipe has another hash"
        return "recipe valid"
    found = load_study(str(path))
    if isinstance(found, StudySuite):
        assert found.cells
        return "suite valid"
    assert found.network_key
    assert found.cells
    again = Study.parse(found.to_dict())
    assert [cell.key for cell in again.cells] == [cell.key for cell in found.cells], "cells have other hashes"
    return "study valid"


def _check_message(text: str) -> None:
    assert text.strip(), "the error says nothing"
    assert text.isprintable(), f"the error is no line that can be printed: {text[:300]!r}"
    assert len(text) <= LINE, f"the error has {len(text):,} characters: {text[:300]}"


def _mutated(draw: random.Random, text: str, other: str) -> bytes:
    if draw.random() < 0.4:
        return _gently(draw, text, other)
    mutation = draw.choices((_values, _raw_values, _text, _bytes, _variants), weights=(35, 20, 25, 10, 10))[0]
    return mutation(draw, text)


def _gently(draw: random.Random, text: str, other: str) -> bytes:
    """Numbers are a little different, and values are those that another file has under the same key."""
    values = yaml.safe_load(text)
    known = {key: holder[key] for holder, key in _places(yaml.safe_load(other))}
    for holder, key in draw.sample(list(_places(values)), 2):
        value = holder[key]
        if isinstance(value, str | dict | bool | None) and isinstance(key, str) and key in known:
            holder[key] = copy.deepcopy(known[key])
        elif isinstance(value, int) and not isinstance(value, bool):
            holder[key] = value + draw.choice((-1, 1, 2))
        elif isinstance(value, float):
            holder[key] = value * draw.choice((0.5, 0.999, 1.001, 2))
    return yaml.dump(values, Dumper=_NoAnchors).encode()


def _values(draw: random.Random, text: str) -> bytes:
    """One to four values, keys or names are others."""
    values = yaml.safe_load(text)
    for _ in range(draw.randint(1, 4)):
        _change(draw, values)
    return yaml.dump(values, Dumper=_NoAnchors if draw.random() < 0.5 else yaml.SafeDumper).encode()


class _NoAnchors(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _raw_values(draw: random.Random, text: str) -> bytes:
    """A value is something that only YAML can write."""
    values = yaml.safe_load(text)
    places = list(_places(values))
    holder, key = draw.choice(places)
    holder[key] = "PLACE-HOLDER"
    return yaml.dump(values, Dumper=_NoAnchors).replace("PLACE-HOLDER", draw.choice(RAW), 1).encode()


def _text(draw: random.Random, text: str) -> bytes:
    """Lines are moved, doubled, indented or lost, words are others, the end is missing."""
    lines = text.split("\n")
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(lines))
        kind = draw.randrange(7)
        if kind == 0:
            lines.insert(draw.randrange(len(lines)), lines[at])
        elif kind == 1:
            lines[at] = " " * draw.randint(1, 3) + lines[at]
        elif kind == 2:
            lines[at] = lines[at].lstrip()
        elif kind == 3 and len(lines) > 1:
            del lines[at]
        elif kind == 4:
            words = re.split(r"(\W+)", lines[at])
            words[draw.randrange(len(words))] = draw.choice((*RAW, *CODE))
            lines[at] = "".join(words)
        elif kind == 5:
            lines[at] += draw.choice(
                (" &a", " *a", " !!str", " #", ":", " {", " - ", "\t", " |", " >", "\u2028")
            )
        else:
            lines = lines[: at + 1]
    whole = "\n".join(lines)
    return whole[: draw.randrange(len(whole) + 1)].encode() if draw.random() < 0.2 else whole.encode()


def _bytes(draw: random.Random, text: str) -> bytes:
    """Some bits are flipped."""
    content = bytearray(text.encode())
    for _ in range(draw.randint(1, 8)):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    return bytes(content)


def _variants(draw: random.Random, text: str) -> bytes:
    """A suite, or something that looks like one."""
    values = yaml.safe_load(text)
    own: Any = {key: values.pop(key) for key in draw.sample(sorted(values), draw.randint(0, 2))}
    labels = draw.sample(["one", "two", "../x", "con", "", "a b", "x" * 300, "a\nb"], draw.randint(0, 3))
    values["variants"] = dict.fromkeys(labels, own) if draw.random() < 0.8 else _extreme(draw)
    if draw.random() < 0.3:
        _change(draw, values)
    return yaml.safe_dump(values).encode()


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in values if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from _places(values[key])


def _change(draw: random.Random, values: Any) -> None:
    """Change something at a random place, in place."""
    places = list(_places(values))
    if not places:
        return
    holder, key = draw.choice(places)
    kind = draw.randrange(8)
    if kind <= 2:
        holder[key] = _extreme(draw)
    elif kind == 3:
        holder[key] = draw.choice(CODE)
    elif kind == 4:
        other, place = draw.choice(places)
        holder[key] = yaml.safe_load(yaml.safe_dump(other[place])) if other[place] is not holder else None
    elif kind == 5:
        _rename(draw, holder, key, [place for _, place in places if isinstance(place, str)])
    elif kind == 6 and isinstance(holder[key], str | dict):
        holder[key] = {"name": draw.choice(CODE), "width": _extreme(draw)}
    elif isinstance(holder[key], int | float):
        holder[key] = holder[key] * draw.choice((-1, 0, 10, 1000, 10**9, 1e-9, 1.0000001))
    else:
        _sweep(draw, holder, key)


def _extreme(draw: random.Random) -> Any:
    return copy.deepcopy(draw.choice(EXTREMES))  # which a later mutation may change


def _rename(draw: random.Random, holder: Any, key: Any, known: list[str]) -> None:
    if isinstance(holder, dict):
        holder[draw.choice([*known, *CODE, "", "x" * 300, "a\nb", "schedule.steps", "recipe.a.b"])] = (
            holder.pop(key)
        )
    else:
        del holder[key]


def _sweep(draw: random.Random, holder: Any, key: Any) -> None:
    """A sweep over settings that may or may not be there, often of more recipes than allowed."""
    keys = (
        "schedule.sparsity",
        "schedule",
        "score",
        "sparsity",
        "a.b.c",
        "..",
        "",
        "retrain.training.epochs",
    )
    width = draw.choice((0, 1, 2, 3, 30))
    points = {name: [_extreme(draw)] * width for name in draw.sample(keys, draw.randint(0, 8))}
    if isinstance(holder, dict):
        holder["sweep"] = points if draw.random() < 0.8 else [points] * width


if __name__ == "__main__":
    main("mutated YAML files", make_case, 5_000)
