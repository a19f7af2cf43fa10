"""What is missing of the packages that only some uses need is named, with how to get it."""

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from prunekit.compress import encode_levels
from prunekit.errors import InputError
from prunekit.extras import EXTRAS, check_installed, imported
from prunekit.study import load_study, run_study

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads(ROOT.joinpath("pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def without(monkeypatch):
    """Packages that seem not to be installed."""
    gone, there = set(), importlib.util.find_spec

    def found(name, *rest):
        return None if name in gone else there(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", found)
    return gone.update


def test_a_missing_package_is_named_with_its_extra(without):
    without(["pooch", "onnx", "onnxscript"])
    with pytest.raises(InputError, match=r"A download needs pooch: pip install 'prunekit\[study\]'"):
        imported("pooch", "A download")
    with pytest.raises(InputError, match=r"ONNX needs onnx, onnxscript: pip install 'prunekit\[export\]'"):
        check_installed("ONNX", "onnx", "onnxruntime", "onnxscript")
    assert imported("json.decoder", "Nothing").JSONDecoder


def test_a_study_asks_for_what_its_report_needs_before_it_begins(without, tmp_path):
    without(["matplotlib"])
    with pytest.raises(InputError, match=r"A study needs matplotlib: pip install 'prunekit\[study\]'"):
        run_study(load_study("digits-quick"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_packing_asks_for_its_coder(without):
    without(["constriction"])
    with pytest.raises(InputError, match=r"A packed file needs constriction: pip install 'prunekit\[pack\]'"):
        encode_levels([np.array([[0, 1], [2, 0]])])


def test_every_extra_brings_its_packages():
    distributions = {"mlflow": "mlflow-skinny", "sklearn": "scikit-learn"}
    for package, extra in EXTRAS.items():
        wanted = PROJECT["optional-dependencies"][extra]
        names = {re.split(r"[<>=\[]", each)[0] for each in wanted}
        assert distributions.get(package, package) in names, package
    core = {re.split(r"[<>=\[]", each)[0] for each in PROJECT["dependencies"]}
    assert core == {"torch", "numpy", "safetensors", "pydantic", "pyyaml", "typer", "rich", "lazy_loader"}


def test_the_main_job_imports_the_core_alone(tmp_path):
    """A network is pruned, made smaller, saved and loaded where nothing of the extras can be imported."""
    code = f"""
import sys
for name in {sorted({*EXTRAS})!r}:
    sys.modules[name] = None
import torch
from torch import nn
from prunekit import load_pretrained, prune, save_pretrained
from prunekit.methods import filter_norm
model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
inputs, targets = torch.randn(16, 6), torch.randint(0, 3, (16,))
pruned = prune(model, filter_norm(sparsity=0.5, epochs=1), (inputs, targets))
pruned.shrink(inputs)
save_pretrained(pruned, sys.argv[1])
again = load_pretrained(sys.argv[1], nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
print(again[0].weight.shape[0])
"""
    ended = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split() == ["4"]
