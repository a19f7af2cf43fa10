"""`import prunekit` alone: what is there, and what it does not cost."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

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


def test_completion_offers_packages_that_nobody_has_imported_and_nothing_that_is_not_ours():
    code = "import prunekit; print(*(name for name in dir(prunekit) if not name.startswith('_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    offered = set(done.stdout.split())
    modules = {module.name for module in pkgutil.iter_modules(prunekit.__path__)}
    names = {*prunekit.__all__, *modules}
    assert offered == {name for name in names if not name.startswith("_")}
    assert {"methods", "measure", "study"} <= offered


def test_subpackages_are_found_without_an_import_of_their_own():
    code = "import prunekit; print(prunekit.parts.scores.Score.__name__, prunekit.study.run_study.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Score run_study\n"


def test_the_prune_that_is_imported_leaves_what_few_need_until_it_is_used():
    """`python -X importtime` says what modules cost; those that lazy packages get count as who asked."""
    code = "import sys; from prunekit import prune; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    own = {name.removeprefix("prunekit.") for name in loaded if name.startswith("prunekit.")}
    assert {"pruning.session", "recipe", "parts.scores.weight_scores"} <= own
    assert len(own) <= 80
    assert not own & {
        "study",
        "report",
        "cli",
        "integrations",
        "saving",
        "export",
        "measure",
        "models",
        "units",
    }
    assert {name for name in own if name.startswith("graph.")} == {"graph.pooling", "graph.rows"}
    assert {name for name in own if name.startswith("parts.scores.")} == {"parts.scores.weight_scores"}
    assert not {"rich", "yaml", "scipy", "matplotlib", "sklearn", "transformers"} & set(loaded)


def test_an_import_does_not_look_through_all_of_pytorch():
    code = """
import gc, torch
frozen = []
def note(phase, info):
    if info["generation"] == 2:
        frozen.append(gc.get_freeze_count() > 0)
gc.callbacks.append(note)
from prunekit import prune
print(all(frozen), gc.get_freeze_count(), gc.isenabled())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True 0 True\n"


def test_a_part_that_is_not_loaded_is_found_by_its_name():
    code = """
import sys
from prunekit import Recipe
assert "prunekit.parts.scores.unit_scores" not in sys.modules
schedule = {"name": "one_shot", "sparsity": 0.5}
recipe = Recipe.parse(
    {"score": "unit_taylor", "granularity": "unit", "allocation": "sensitivity", "schedule": schedule}
)
print(type(recipe.score).__name__, type(recipe.granularity).__name__, type(recipe.allocation).__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "UnitTaylor Unit Sensitivity\n"


def test_a_part_of_the_users_own_is_refused_a_name_of_one_that_is_not_loaded():
    code = """
from prunekit.parts.scores import Score
class Mine(Score):
    name = "thinet"
    def __call__(self, context): return {}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode
    assert "a score named 'thinet' comes with prunekit" in done.stderr


def packages():
    root = Path(prunekit.__file__).parent
    for stub in sorted(root.rglob("__init__.pyi")):
        yield ".".join(("prunekit", *stub.parent.relative_to(root).parts))


@pytest.mark.parametrize("package", list(packages()))
def test_every_name_of_a_lazy_package_is_there_whatever_was_imported_before(package):
    module = importlib.import_module(package)
    for _, name, _ in pkgutil.iter_modules(module.__path__, f"{package}."):
        if name != "prunekit.__main__":  # runs the commands
            importlib.import_module(name)
    public = {name: getattr(module, name) for name in module.__all__}
    assert public
    submodules = {name for name, value in public.items() if inspect.ismodule(value)}
    assert submodules == (set(module.__all__) if package == "prunekit.parts" else set())


@pytest.mark.parametrize("name", ["nothing", "_private", "__wrapped__"])
def test_another_name_is_an_attribute_error(name):
    assert not hasattr(prunekit, name)
