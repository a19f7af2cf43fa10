"""Every script of the gallery runs, and what it says of its networks is so."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from test_docs_code import ROOT, tool

GALLERY = ROOT / "docs" / "gallery"
SHORT = ("bert_trainer", "detector", "lightning_training", "llama")


def parameters(model):
    return sum(each.numel() for each in model.parameters())


def resnet(names, printed):
    assert parameters(names["again"]) < 0.35 * parameters(
        names["create"](names["settings"], (1, 8, 8), 10, seed=0)
    )
    assert names["accuracy"](names["again"]) == names["accuracy"](names["pruned"].model) > 0.9


def detector(names, printed):
    assert names["count"](names["again"], names["images"][:1]).macs <= names["before"] / 2
    with torch.no_grad():
        outputs = names["again"](names["images"])
        for stride, found in names["pruned"].model.eval()(names["images"]).items():
            assert torch.equal(outputs[stride], found)
    assert Path("small-detector.onnx").stat().st_size > 0


def vit(names, printed):
    first = names["again"].vit.encoder.layer[0]
    assert first.attention.attention.query.out_features == 16
    assert first.intermediate.dense.out_features == 32
    right = names["metrics"](names["again"], names["test"])["accuracy"]
    assert right == names["metrics"](names["model"], names["test"])["accuracy"] > 0.6


def bert_trainer(names, printed):
    assert [each.intermediate.dense.out_features for each in names["again"].bert.encoder.layer] == [32, 32]
    assert len(names["pruning"].session.history) == 4
    with torch.no_grad():
        outputs = [model.eval()(names["words"]).logits for model in (names["again"], names["model"])]
    assert torch.equal(*outputs)


def llama(names, printed):
    assert (names["again"].config.num_attention_heads, names["again"].config.intermediate_size) == (2, 64)
    assert printed.endswith("True\n")
    words = names["tokens"][:1, :8]
    for _ in range(8):  # without the cache
        words = torch.cat([words, names["again"](words, use_cache=False).logits[:, -1:].argmax(2)], 1)
    assert torch.equal(words, names["written"])


def lightning_training(names, printed):
    masks = names["pruning"].session.masks
    assert masks.kept == round(0.2 * masks.total)
    for parameter, mask in masks.parameters(names["model"]):
        assert torch.equal(parameter != 0, mask)


def tabular(names, printed):
    """Columns that are not in the figure can hold anything."""
    assert names["accuracy"]() > 0.9
    assert 0 < len(names["read"]) < 30
    other = torch.randn_like(names["inputs"])
    other[:, names["read"]] = names["inputs"][:, names["read"]]
    assert torch.equal(names["model"](other), names["model"](names["inputs"]))


def own_method(names, printed):
    moved, random = (float(each) for each in re.findall(r"accuracy (\S+)", printed))
    assert moved > random + 0.1


def study(names, printed):
    assert len(names["rows"]) == 3 * (1 + 3 + 3)
    assert names["report"].is_file()
    means = {line.get_label(): line.lines[0].get_ydata() for line in names["axes"].containers}
    assert (means["magnitude"] > means["random"]).all()


CHECKS = {
    each.__name__: each
    for each in (resnet, detector, vit, bert_trainer, llama, lightning_training, tabular, own_method, study)
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_script_runs_and_what_it_says_is_so(name, tmp_path, monkeypatch, capsys):
    plt = pytest.importorskip("matplotlib.pyplot")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.syspath_prepend(GALLERY)
    with tool.like_a_user(tmp_path):
        names = runpy.run_path(str(GALLERY / f"{name}.py"))
        CHECKS[name](names, capsys.readouterr().out)
    plt.close("all")
    sys.modules.pop("detector_network", None)


def test_every_script_is_run():
    assert {path.stem for path in GALLERY.glob("*.py")} - {"detector_network"} == set(CHECKS)


@pytest.mark.parametrize("name", SHORT)
def test_a_whole_pruning_takes_fewer_than_twenty_lines(name):
    """Of code: without imports, comments and empty lines."""
    text = (GALLERY / f"{name}.py").read_text(encoding="utf-8").split('"""', 2)[2]
    text = re.sub(r"^(from .+ )?import (\([^)]*\)|.+)$", "", text, flags=re.MULTILINE)
    assert len([line for line in text.splitlines() if line.strip() and not line.startswith("#")]) < 20
