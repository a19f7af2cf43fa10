"""`import prunekit` alone: what is there, and what it does not cost."""

import subprocess
import sys

import pytest

import prunekit


def test_importing_it_and_what_a_worker_begins_with_imports_no_torch():
    code = "import sys, prunekit, prunekit.worker, prunekit.report; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_public_name_is_there_and_listed():
    for name in prunekit.__all__:
        assert getattr(prunekit, name) is not None
        assert name in dir(prunekit)
    assert prunekit.train is prunekit.training.train
    assert sorted([*prunekit._HOMES, "__version__"]) == sorted(prunekit.__all__)


def test_subpackages_are_found_without_an_import_of_their_own():
    code = "import prunekit; print(prunekit.parts.scores.Score.__name__, prunekit.study.run_study.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Score run_study\n"


@pytest.mark.parametrize("name", ["nothing", "_private", "__wrapped__"])
def test_another_name_is_an_attribute_error(name):
    assert not hasattr(prunekit, name)
