"""What the commands do and print."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from prunekit import __version__, load_pretrained
from prunekit.cli import lazy
from prunekit.data.dataset import from_tensors
from prunekit.methods import METHODS
from prunekit.study import names
from tiny_study import one_shot, stages, write_study

COMMANDS = ("methods", "compare", "prune", "shrink", "inspect", "report")
PRUNE = "prune '{name: mlp, hidden: [8]}' --data iris --method magnitude --train 2 --out pruned"


def read(ended):
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


def test_prune_writes_to_a_logger_by_name(command, tmp_path):
    pytest.importorskip("tensorboard", reason="the event files are TensorBoard's")
    ended = command(f"{PRUNE} --logger tensorboard=curves")
    assert ended.code == 0, ended.err
    assert list(Path("curves").glob("events.out.tfevents.*"))
    refused = command(f"{PRUNE.replace('--out pruned', '--out again')} --logger tensorboard")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "the logger 'tensorboard' needs a folder: tensorboard=FOLDER" in refused.err
    assert not Path("again").exists()


# ---- help ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_an_example_and_fits_80_columns(command, name):
    ended = command(f"{name} --help")
    assert ended.code == 0
    assert ended.err == ""
    example = re.search(r"Example: prunekit (.*)", ended.out)
    assert example is not None
    assert example[1].split()[0] == name
    assert all(len(line) <= 80 for line in ended.out.splitlines())


def test_the_help_of_all(command):
    ended = command("--help")
    assert ended.code == 0
    for name in COMMANDS:
        assert f" {name} " in ended.out
    assert command("").code == 2
    assert command("compare").code == 2
    assert command("--version").out == f"prunekit {__version__}\n"


def test_help_does_not_wait_for_what_it_does_not_need():
    code = (
        "import sys; from prunekit.cli import run; run(['--help']);"
        "slow = ('torch', 'numpy', 'matplotlib', 'sklearn', 'jinja2');"
        "print([name for name in slow if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", lazy.COMMANDS)
def test_the_list_says_what_the_command_says(name):
    defined = lazy.loaded(name)
    assert defined.name == name
    assert defined.help.splitlines()[0] == lazy.COMMANDS[name][1]


def test_a_command_that_is_nearly_one(command):
    ended = command("shrnk")
    assert (ended.code, ended.out) == (2, "")
    assert "No such command 'shrnk'. Did you mean 'shrink'?" in ended.err


# ---- methods -------------------------------------------------------------------------------------


def test_methods_are_listed(command):
    ended = command("methods")
    assert ended.code == 0
    assert all(name in ended.out for name in METHODS)
    assert [row["name"] for row in read(command("methods --json"))] == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_shown_as_a_recipe_that_works(command, name, tmp_path):
    ended = command(f"methods {name}")
    text = ended.out.partition("as YAML:\n")[2]
    assert read(command(f"methods {name} --json"))["recipe"] == yaml.safe_load(text)


# ---- compare and report --------------------------------------------------------------------------


def test_studies_are_listed(command):
    ended = command("compare --list")
    assert [line.split()[0] for line in ended.out.splitlines()] == names()
    assert [row["name"] for row in read(command("compare --list --json"))] == names()


def test_compare_prints_json_alone_and_goes_on_where_it_was(command, tmp_path):
    write_study(tmp_path / "s.yaml", methods={"random": one_shot("random", 0.5)})
    line = "compare s.yaml --workers 1 --set training.epochs=1 --out results --json"
    ended = command(f"{line} --seeds 1")
    found = read(ended)
    assert found["report"] == "results/report.html"
    assert found["findings"]
    assert "2 runs to do" in ended.err
    assert "2 of 2 runs done" in ended.err
    before = stages(tmp_path / "results")
    assert len(before) == 2
    ended = command(f"{line} --seeds 2")
    assert "2 runs to do" in ended.err
    assert before.items() <= stages(tmp_path / "results").items()
    saved = json.loads((tmp_path / "results" / "study.json").read_text())
    assert saved["command"] == "prunekit compare s.yaml --set training.epochs=1 --set seeds=2"


def test_report_makes_the_page_anew(command, studied):
    page = studied / "report.html"
    page.unlink()
    assert read(command(f"report '{studied}' --json"))["report"] == str(page)
    assert page.exists()
    ended = command(f"report '{studied}'")
    assert ended.out.splitlines()[-1] == str(page)
    assert ended.err == ""


def test_what_is_read_by_head_is_no_error(tmp_path):
    line = f"{sys.executable} -m prunekit methods --json | head -c 10; echo ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert found.stderr == ""


# ---- prune ---------------------------------------------------------------------------------------


def test_prune_again_and_further(command, tmp_path):
    first = read(command(f"{PRUNE} --set sparsity=0.5 --json"))
    assert first["steps"][-1]["sparsity"] == 0.5
    assert first["bytes"] == sum(path.stat().st_size for path in (tmp_path / "pruned").iterdir())
    assert set(first["before"]) == {"test_accuracy", "test_loss"}

    again = read(command("prune pruned --data iris --method magnitude --set sparsity=0.5 --out same --json"))
    assert again["steps"][-1]["test_loss"] == again["before"]["test_loss"]  # 0.5 twice is 0.5

    line = "prune pruned --method magnitude --set sparsity=0.8 --out further"
    assert "80.4% of 56 weights removed" in command(line).out  # 45 of 56
    weights = [p for p in load_pretrained(tmp_path / "further").parameters() if p.dim() > 1]
    assert sum(int((p != 0).sum()) for p in weights) == 11
    assert read(command("inspect further --json"))["nonzeros"] <= 11 + 11


def test_prune_with_weights_of_a_folder_and_of_its_file(command):
    first = read(command(f"{PRUNE} --set sparsity=0.1 --json"))
    line = "prune '{name: mlp, hidden: [8]}' --data iris --method magnitude --set sparsity=0.5 --json --out"
    for number, weights in enumerate(("pruned", "pruned/model.safetensors")):
        found = read(command(f"{line} p{number} --weights {weights}"))
        assert found["before"]["test_loss"] == first["steps"][-1]["test_loss"]
    assert "leave out --weights" in command("prune pruned --method snip --weights pruned --out p").complaint()


def test_prune_with_a_recipe_and_a_change_of_it(command, tmp_path):
    (tmp_path / "r.yaml").write_text(
        "{score: random, schedule: {name: linear, sparsity: 0.8, steps: 4}, ignore: [fc1]}"
    )
    found = read(command("prune mlp --recipe r.yaml --set schedule.steps=2 --data iris --out p --json"))
    assert len(found["steps"]) == 2
    assert found["steps"][-1]["sparsity"] == pytest.approx(0.8, abs=0.01)


def test_a_lottery_ticket_needs_and_gets_the_training(command):
    line = (
        "prune mlp --data iris --method lottery_ticket --set rounds=2 --set epochs=1 --train 1 --out p --json"
    )
    assert len(read(command(line))["steps"]) == 2


@pytest.mark.usefixtures("own_models")
def test_a_model_of_ones_own(command, tmp_path):
    own = "own_models_of_cli:small"
    ended = command(f"prune {own} --data iris --method snip --out p --json")
    assert read(ended)["steps"]
    assert "a word of the user's code" in ended.err
    complaint = command("inspect p").complaint()
    assert complaint == f"p does not hold the code of its network: write {own} in its place, and --weights p"
    assert read(command(f"inspect {own} --weights p --data iris --json"))["parameters"] == 67
    assert 'load_pretrained("q", model)' in command(f"prune {own} --weights p --method magnitude --out q").out


def test_the_current_folder_can_be_imported_from_also_by_workers(tmp_path):
    (tmp_path / "mine_in_cwd.py").write_text(
        "from torch import nn\nfrom prunekit.parts.scores import Score\n\n\n"
        "def net() -> nn.Module:\n    print('noise')\n    return nn.Linear(4, 3)\n\n\n"
        "class Mine(Score):\n    name = 'mine'\n\n    def __call__(self, context):\n        print('noise')\n"
        "        return {name: weight.abs() for name, weight in context.weights.items()}\n"
    )
    method = {"recipe": {"score": "mine_in_cwd:Mine", "schedule": {"name": "one_shot", "sparsity": 0.5}}}
    write_study(tmp_path / "s.yaml", model="mine_in_cwd:net", methods={"a": method}, controls={})
    # the command itself, not `python -m`, which would put the folder on the path
    code = "import sys; sys.path[:] = [p for p in sys.path if p]; from prunekit.cli import main; main()"
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "compare",
            "s.yaml",
            "--workers",
            "2",
            "--json",
            "--allow",
            "mine_in_cwd",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["report"] == "runs/tiny/report.html"
    assert "noise" in found.stderr


# ---- inspect -------------------------------------------------------------------------------------


def test_inspect_by_name_with_sizes(command):
    found = read(command("inspect lenet_300_100 --input-shape 1,28,28 --json"))
    assert found["parameters"] == 266_610
    assert found["latency"]["median"] > 0
    assert (
        read(command("inspect lenet_300_100 --input-shape 1x28x28 --outputs 2 --json"))["parameters"]
        < 266_000
    )


def test_inspect_a_study_s_network(command, studied):
    (folder,) = studied.glob("cells/tickets-*/seed-0/model")
    ended = command(f"inspect '{folder}'")
    assert ended.code == 0
    assert "latency: " in ended.out
    assert "test" not in ended.out
    assert "test accuracy: " in command(f"inspect '{folder}' --data iris").out


def test_a_folder_that_has_the_name_of_a_model_is_no_saved_network(command, tmp_path):
    (tmp_path / "mlp").mkdir()
    assert command("inspect mlp --input-shape 4").code == 0


# ---- the figures that suit the task --------------------------------------------------------------


def test_classification_is_told_by_accuracy_and_loss(command):
    for line, top5 in (
        (f"{PRUNE}", False),
        ("inspect pruned --data iris", False),
        ("prune mlp --data digits --method magnitude --out d", True),
        ("inspect d --data digits", True),
    ):
        out = command(line).out
        assert "test accuracy: " in out
        assert "test loss: " in out
        assert ("test top5: " in out) == top5
        assert "mse" not in out


def test_regression_is_told_by_the_squared_error(command, monkeypatch):
    inputs = torch.randn(60, 4)
    regression = from_tensors((inputs, inputs.sum(dim=1)))
    monkeypatch.setattr("prunekit.cli.networks.load", lambda *_: regression)
    for line in (PRUNE, "inspect pruned --data any"):
        out = command(line).out
        assert "test mse: " in out
        assert "accuracy" not in out
        assert "loss" not in out


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (["--help"], ["--install-completion", "--show-completion"]),
        (["prune", "--help"], ["--method", "--data-dir", "--weights"]),
    ],
)
def test_help_keeps_its_words_on_a_narrow_terminal(line, options):
    narrow = {**os.environ, "COLUMNS": "40", "TERMINAL_WIDTH": "40", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", *line], capture_output=True, text=True, check=True, env=narrow
    )
    assert "…" not in done.stdout
    assert not re.search(r"[a-z:]\.\.\.$", done.stdout, re.MULTILINE)  # as in "Prune a language..."
    for option in options:
        assert f"{option} " in done.stdout


def test_a_table_loses_nothing_on_a_narrow_terminal(command, monkeypatch):
    line = "inspect resnet20 --input-shape 3,32,32"
    wide = command(line).out.splitlines()
    monkeypatch.setenv("COLUMNS", "40")
    narrow = command(line).out.splitlines()
    table = next(place for place, text in enumerate(wide) if text.startswith("total"))
    assert narrow[: table + 1] == wide[: table + 1]
