"""The lines that `python tests/fuzz/mutants.py` changes are there, and the tests that should notice."""

from pathlib import Path

import mutants
import pytest

import prunekit

PACKAGE = Path(prunekit.__file__).parent


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.breaks)
def test_the_line_is_found_once_and_its_tests_are(mutant):
    lines = zip(mutant.old.splitlines(), mutant.new.splitlines(), strict=True)
    assert sum(old != new for old, new in lines) == 1
    assert mutants.place_of(mutant, PACKAGE)
    assert mutants.test_files(mutant.tests, Path(__file__).parent.parent)


def test_there_are_enough_of_them():
    assert len(mutants.MUTANTS) >= 24
    assert len({(mutant.old, mutant.new) for mutant in mutants.MUTANTS}) == len(mutants.MUTANTS)
