"""The page of definitions has one entry for every method and every part that has a source, and no other."""

import re
from collections import Counter

import pytest
from test_docs_tables import read, tool

from prunekit import methods

PAGE = "docs/definitions.md"
SAID = ("Published", "Here", "Differs")
SOURCE = re.compile(r"arXiv \d{4}\.\d{4,5}|10\.\d{4}/\S+|openreview \w+")


def entries(text: str) -> dict[str, str]:
    """The text below each heading of an entry."""
    found = re.split(r"^### (.+)\n", text, flags=re.MULTILINE)[1:]
    return {
        heading: re.split(r"^## ", body, flags=re.MULTILINE)[0]
        for heading, body in zip(found[::2], found[1::2], strict=True)
    }


def named(heading: str) -> list[tuple[str, str]]:
    """The families and names of a heading: 'Title: method `a`, `b`; score `c`'."""
    found = []
    for family in heading.partition(": ")[2].split("; "):
        assert re.fullmatch(r"\w+ `[^`]+`(, `[^`]+`)*", family), heading
        found += [(family.split()[0], name) for name in re.findall(r"`([^`]+)`", family)]
    assert found, heading
    return found


def sources() -> dict[tuple[str, str], str]:
    """The source of every method and every part, by family and name; empty where there is none."""
    found = {("method", name): methods.describe(name).paper for name in methods.METHODS}
    for family, (base, _) in tool.FAMILIES.items():
        found |= {(family, name): part.paper for name, part in tool.members(base).items()}
    return found


ENTRIES = entries(read(PAGE))


def test_every_method_and_every_part_with_a_source_is_defined_once() -> None:
    defined = [each for heading in ENTRIES for each in named(heading)]
    assert [each for each, times in Counter(defined).items() if times > 1] == []
    known = sources()
    assert set(defined) - set(known) == set()
    wanted = {(family, name) for (family, name), paper in known.items() if paper or family == "method"}
    assert wanted - set(defined) == set()


@pytest.mark.parametrize("heading", ENTRIES)
def test_an_entry_says_three_things_and_names_its_sources(heading: str) -> None:
    body = ENTRIES[heading]
    labels = re.findall(r"^- \*\*(\w+)\.\*\* (?=\S)", body, flags=re.MULTILINE)
    assert labels == list(SAID)
    known, flat = sources(), " ".join(body.split())
    for each in named(heading):
        for source in SOURCE.findall(known[each]):
            assert source.rstrip(".,;") in flat, (each, source)


def test_an_entry_that_is_missing_or_of_nothing_is_found() -> None:
    assert named("A: method `b`, `c`; score `n:m`") == [("method", "b"), ("method", "c"), ("score", "n:m")]
    with pytest.raises(AssertionError):
        named("A title without parts")
    assert entries("### A: score `b`\n\ntext\n\n## Next\n\n### C: score `d`\nmore") == {
        "A: score `b`": "\ntext\n\n",
        "C: score `d`": "more",
    }
