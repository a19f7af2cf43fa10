"""Code of the user's own on the command line: what runs, what is asked, and what a folder cannot bring in."""

import contextlib
import json
import os
import subprocess
import sys

import pytest

from prunekit.cli.options import file_in
from prunekit.digests import write_json_with_digest
from prunekit.errors import plain_line
from tiny_study import one_shot, settings, write_study

CODE = """
from pathlib import Path
from torch import nn
from prunekit.parts.scores import Magnitude

with Path(__file__).with_name("RAN").open("a") as file:
    file.write("x")


class Sly(Magnitude):
    name = "sly"


def net() -> nn.Module:
    return nn.Linear(4, 3)


def bare():
    Path(__file__).with_name("CALLED").touch()
"""
MAIN = "import sys; sys.path[:] = [p for p in sys.path if p]; from prunekit.cli import main; main()"
"""The command itself, not `python -m`, which would put the folder on the path."""
RECIPE = "{score: '%s', schedule: {name: one_shot, sparsity: 0.5}}"
PRUNE = "prune mlp --data iris --recipe r.yaml --out p"
WOULD = (
    "would import the module unwanted and call its {}, which nobody has allowed: if you trust this code, add "
    '--allow unwanted on the command line, allow=["unwanted"] in Python'
)


def study_with(score):
    return {"methods": {"a": {"recipe": {**one_shot("random", 0.5)["recipe"], "score": score}}}}


@pytest.fixture
def ran(command, tmp_path):
    """How often modules in the current folder have run; no test lets `unwanted` run."""
    for name in ("slycode", "unwanted"):
        (tmp_path / f"{name}.py").write_text(CODE)
    file = tmp_path / "RAN"
    return lambda: len(file.read_text()) if file.exists() else 0


@pytest.mark.parametrize("name", ["unwanted:Sly", "subprocess:getoutput"])
def test_a_recipe_runs_no_code_by_itself(command, ran, name, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE % name)
    module, _, attribute = name.partition(":")
    complaint = command(PRUNE).complaint()
    assert WOULD.format(attribute).replace("unwanted", module) in complaint
    assert ran() == 0
    assert not (tmp_path / "p").exists()


def test_a_recipe_with_permission(command, ran, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE % "slycode:Sly")
    assert command(f"{PRUNE} --allow slycode").code == 0
    assert ran() == 1
    assert "sly" in (tmp_path / "p" / "prunekit.json").read_text()


@pytest.mark.parametrize(
    ("changes", "assignment", "attribute"),
    [
        ({"model": "unwanted:net"}, "", "net"),
        ({**study_with("unwanted:Sly"), "controls": {}}, "", "Sly"),
        ({}, "--set model=unwanted:net", "net"),
        ({}, "--set model.name=unwanted:net", "net"),
        ({}, "--set methods.random.recipe.score=unwanted:Sly", "Sly"),
        ({}, "--set 'training.regularize=[unwanted:Sly]'", "Sly"),
    ],
)
def test_a_study_runs_no_code_by_itself(command, ran, tmp_path, changes, assignment, attribute):
    write_study(tmp_path / "s.yaml", **changes)
    for allowed in ("", "--allow unwante", "--allow unwanted.more"):
        complaint = command(f"compare s.yaml {assignment} --workers 1 {allowed}").complaint()
        assert WOULD.format(attribute) in complaint
    assert ran() == 0
    assert not (tmp_path / "runs").exists()


def test_what_makes_no_model_is_not_called_by_a_study_though_it_is_allowed(command, ran, tmp_path):
    write_study(tmp_path / "s.yaml", model="slycode:bare")
    complaint = command("compare s.yaml --workers 1 --allow slycode").complaint()
    assert "'slycode:bare' is not called, because nothing says that it makes a model" in complaint
    assert not (tmp_path / "CALLED").exists()


def test_the_command_that_repeats_a_study_has_its_permission(command, ran, tmp_path):
    write_study(tmp_path / "s.yaml", model="slycode:net", seeds=1)
    assert command("compare s.yaml --workers 1 --allow slycode --out r --json").code == 0
    saved = json.loads((tmp_path / "r" / "study.json").read_text())
    assert saved["command"] == "prunekit compare s.yaml --allow slycode"


@pytest.mark.parametrize(
    "line", ["compare s.yaml --allow s/t", "prune mlp --recipe r.yaml --out p --allow a:b"]
)
def test_what_cannot_be_allowed(command, line, tmp_path):
    write_study(tmp_path / "s.yaml")
    assert "cannot be allowed: write the name of a module alone" in command(line).complaint()


@pytest.mark.parametrize("model", ["slycode:net", "'{name: \"slycode:net\"}'"])
def test_a_model_that_is_typed_is_allowed_by_that(command, ran, model):
    assert command(f"inspect {model} --input-shape 4 --json").code == 0
    assert command(f"prune {model} --data iris --method magnitude --out p").code == 0
    assert ran() == 1


def test_but_not_the_recipe_beside_it(command, ran, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE % "unwanted:Sly")
    complaint = command("prune slycode:net --data iris --recipe r.yaml --out p").complaint()
    assert WOULD.format("Sly") in complaint
    assert ran() == 0


def test_what_is_typed_is_called_only_if_it_makes_a_model(command, ran, tmp_path):
    for model in ("slycode:bare", "subprocess:getoutput", "builtins:exec"):
        assert f"'{model}' is not called" in command(f"inspect {model} --input-shape 4").complaint()
    assert not (tmp_path / "CALLED").exists()


def test_a_saved_folder_imports_nothing(command, ran, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))  # an import would succeed
    assert command("prune mlp --data iris --method magnitude --out p").code == 0
    path = tmp_path / "p" / "prunekit.json"
    saved = json.loads(path.read_text())
    del saved["sha256"]
    saved["architecture"]["model"] = {"name": "unwanted:net"}
    write_json_with_digest(path, saved)
    told = "p does not hold the code of its network: write unwanted:net in its place, and --weights p"
    assert command("inspect p").complaint() == told
    for line in (
        "inspect p --data iris",
        "shrink p --out q",
        "prune p --method magnitude --out q",
        "inspect mlp --data iris --weights p",
    ):
        assert command(line).code in (0, 2)
    assert ran() == 0


def test_no_text_of_a_file_commands_the_terminal(command, tmp_path):
    assert command("prune mlp --data iris --method magnitude --out p").code == 0
    path = tmp_path / "p" / "prunekit.json"
    saved = json.loads(path.read_text())
    del saved["sha256"]
    saved["architecture"]["model"] = {"name": "unwanted:\x1b[2Jnet"}
    write_json_with_digest(path, saved)
    assert "write unwanted:?[2Jnet in its place" in command("inspect p").complaint()
    assert plain_line("a\x1b[2J\x07b\r\nc\u202e é ─ \ud800") == "a?[2J?b c? é ─ ?"


# ---- asking --------------------------------------------------------------------------------------


class Terminal:
    """A terminal at which somebody has typed these lines."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def isatty(self):
        return True

    def readline(self):
        return self.lines.pop(0) if self.lines else ""


def at_terminal(monkeypatch, *lines):
    typed = Terminal(*lines)
    monkeypatch.setattr(sys, "stdin", typed)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    return typed


def test_a_person_is_asked_once_about_code_of_the_folder(command, ran, tmp_path, monkeypatch):
    write_study(tmp_path / "s.yaml", model="slycode:net", **study_with("slycode:Sly"), controls={}, seeds=1)
    typed = at_terminal(monkeypatch, "y\n", "never read\n")
    ended = command("compare s.yaml --workers 1 --json")
    assert ended.code == 0, ended.err
    assert ended.err.startswith(
        "slycode:net names code of this folder, which would be run: "
        f"import {tmp_path / 'slycode.py'}, call net. Allow it? [y/N] "
    )
    assert ended.err.count("Allow it?") == 1
    assert json.loads(ended.out)["report"] == "runs/tiny/report.html"
    assert typed.lines == ["never read\n"]
    assert ran() == 1


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "ja\n"])
def test_anything_but_yes_is_no(command, ran, tmp_path, monkeypatch, answer):
    write_study(tmp_path / "s.yaml", model="unwanted:net", **study_with("unwanted:Sly"), controls={})
    at_terminal(monkeypatch, answer)
    ended = command("compare s.yaml --workers 1")
    assert ended.code == 2
    assert WOULD.format("net") in ended.err
    assert ended.err.count("Allow it?") == 1
    assert ran() == 0
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    "name", ["subprocess:getoutput", "nothing_there:f", "torch.nn:Linear", "unwanted.sub:f"]
)
@pytest.mark.usefixtures("ran")
def test_nobody_is_asked_about_code_from_elsewhere(command, tmp_path, monkeypatch, name):
    (tmp_path / "torch.py").write_text("raise SystemExit")  # is not what an import would find
    write_study(tmp_path / "s.yaml", model=name)
    at_terminal(monkeypatch, "y\n")
    assert "nobody has allowed" in command("compare s.yaml --workers 1").complaint()


def test_the_file_of_a_module_is_found_without_importing(tmp_path):
    package = tmp_path / "pack_in_folder"
    (package / "deep").mkdir(parents=True)
    for path in (package / "__init__.py", package / "nets.py", package / "deep" / "nets.py"):
        path.write_text("raise SystemExit")
    assert file_in(tmp_path, "pack_in_folder") == package / "__init__.py"
    assert file_in(tmp_path, "pack_in_folder.nets") == package / "nets.py"
    assert file_in(tmp_path, "pack_in_folder.deep.nets") == package / "deep" / "nets.py"
    assert file_in(tmp_path, "pack_in_folder.deep") == package / "deep"
    for name in ("nets", "pack_in_folder.no", "pack_in_folder.nets.no", "os", "torch"):
        assert file_in(tmp_path, name) is None
    assert "pack_in_folder" not in sys.modules


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_the_question_at_a_real_terminal(tmp_path):
    import pty

    (tmp_path / "slycode.py").write_text(CODE)
    write_study(tmp_path / "s.yaml", model="slycode:net", **study_with("slycode:Sly"), controls={}, seeds=1)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", MAIN, "compare", "s.yaml", "--workers", "1", "--json"],
        cwd=tmp_path,
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    said, answered = b"", False
    with contextlib.suppress(OSError):  # the end of a terminal, when nobody holds its other side
        while chunk := os.read(ours, 10_000):
            said += chunk
            if b"[y/N]" in said and not answered:
                os.write(ours, b"y\n")
                answered = True
    os.close(ours)
    out = process.stdout.read()
    assert process.wait() == 0
    assert said.count(b"[y/N]") == 1
    assert json.loads(out)["report"] == "runs/tiny/report.html"


# ---- somebody else's folder ----------------------------------------------------------------------

TRAPS = (
    *("matplotlib", "sklearn", "jinja2", "yaml", "rich", "numpy", "scipy", "safetensors", "pandas", "triton"),
    *("socket", "selectors", "struct", "pickle", "tempfile", "multiprocessing", "runpy", "signal", "random"),
    *("sitecustomize", "usercustomize", "readline", "prunekit", "torch", "typer", "click", "slycode"),
)


def test_a_folder_brings_no_code_into_a_run_there(tmp_path):
    for name in TRAPS:
        (tmp_path / f"{name}.py").write_text(
            f"open({str(tmp_path / 'RAN')!r}, 'a').write(__name__ + ' ')\nraise SystemExit(9)\n"
        )
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfigure.dpi: 3\nbackend: module://slycode\n")
    write_study(tmp_path / "s.yaml", methods={"random": settings()["methods"]["random"]}, seeds=1)
    found = subprocess.run(
        [sys.executable, "-c", MAIN, "compare", "s.yaml", "--workers", "2", "--json"],
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert not (tmp_path / "RAN").exists(), (tmp_path / "RAN").read_text()
