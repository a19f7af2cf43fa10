"""Command lines in this process: the exit code, and what is printed where."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from prunekit.cli import run
from prunekit.study import run_study
from tiny_study import tiny

MODELS = """
import torch
from torch import nn


def small(hidden: int = 8) -> nn.Module:
    print("a word of the user's code")
    return nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 3))


def shaped(input_shape, outputs: int) -> nn.Module:
    return nn.Linear(input_shape[0], outputs)


def not_a_number() -> nn.Module:
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    return model


def other_inputs() -> nn.Linear:
    return nn.Linear(5, 3)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.into, self.block, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.into(x)
        return self.out(x + torch.relu(self.block(x)))


def residual() -> Residual:
    return Residual()


def three_outputs() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))


def broken() -> nn.Module:
    raise RuntimeError("no\\nway")
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    def complaint(self) -> str:
        """The one line of a command that was given bad input."""
        assert self.code == 2
        assert self.out == ""
        assert self.err.startswith("prunekit: error: ")
        assert self.err.endswith("\n")
        assert self.err.count("\n") == 1, self.err
        assert "Traceback" not in self.err
        return self.err.removeprefix("prunekit: error: ").rstrip()


Command = Callable[[str], Ended]


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Command]:
    """Runs a command line in a folder of its own."""
    logger = logging.getLogger("prunekit")
    before = logger.handlers, logger.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")

    def call(line: str) -> Ended:
        capfd.readouterr()
        code = run(shlex.split(line))
        return Ended(code, *capfd.readouterr())

    loaded = set(sys.modules)
    yield call
    for name in set(sys.modules) - loaded:  # the next test has files of the same names in another folder
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
    logger.handlers, logger.level = before


@pytest.fixture
def own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the user's in the current folder."""
    (tmp_path / "own_models_of_cli.py").write_text(MODELS)


@pytest.fixture(scope="session")
def studied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study; not to be changed."""
    folder = tmp_path_factory.mktemp("studied") / "tiny"
    run_study(tiny(), folder, workers=1)
    return folder
