"""Bad input ends with exit code 2 and one line that says what is wrong."""

import gzip
import json
import os
import re
import shutil
import struct

import pytest
import torch
from safetensors.torch import save_file

from tiny_study import settings, write_study

pytestmark = pytest.mark.usefixtures("own_models")

PRUNE = "prune '{name: mlp, hidden: [8]}' --data iris --method magnitude --out pruned"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{PRUNE} --set sparsity=40", "40 is no sparsity: .*: write 0.4 for 40 %"),
        (f"{PRUNE} --set sparsity=1.0", r"1 is no sparsity: .*in \[0, 1\)"),
        (f"{PRUNE} --set sparsty=0.5", "unknown key 'sparsty'; did you mean 'sparsity'.*keys are: sparsity"),
        (f"{PRUNE} --set sparsity", "write key=value"),
        (f"{PRUNE} --train -1", "epochs = -1"),
        (f"{PRUNE} --seed -1", "--seed"),
        (f"{PRUNE} --weights nothing.safetensors", "there is no file nothing.safetensors"),
        (f"{PRUNE} --recipe a.yaml", "either --method NAME .* or --recipe FILE"),
        ("prune mlp --out pruned --data iris", "either --method NAME .* or --recipe FILE"),
        ("prune mlp --method magnitude --data iris", "Missing option '--out'"),
        (
            "prune mlp --method magnitude --out pruned",
            "the model mlp takes its shapes from a dataset: add --data",
        ),
        (
            "prune mlp --method nothing --data iris --out pruned",
            "method 'nothing'; `prunekit methods` lists",
        ),
        ("prune mlp --method snip --data nothing --out pruned", "no dataset 'nothing'; names are: breast"),
        (
            "prune nothing --method snip --data iris --out pruned",
            "no folder, packed file or model 'nothing'; models are: char_transformer",
        ),
        ("prune './no/thing' --method snip --data iris --out pruned", "there is no folder ./no/thing"),
        (
            "prune '{name: mlp, hiden: [3]}' --data iris --method snip --out p",
            "key 'hiden'; .* allowed",
        ),
        ("prune '{name: mlp' --data iris --method snip --out p", "is not valid YAML: line 1"),
        ("prune mlp --recipe nothing.yaml --data iris --out p", "cannot read nothing.yaml: No such file"),
        ("prune mlp --method lottery_ticket --data iris --out p", "goes back to .*: add --train EPOCHS"),
        ("prune own_models_of_cli:other_inputs --method snip --out p", "score .* needs data"),
        ("prune own_models_of_cli:shaped --method magnitude --out p", "takes its shapes from a dataset"),
        (
            "prune nothing_there:f --data iris --method snip --out p",
            "cannot import 'nothing_there'.*ModuleNotF",
        ),
        ("prune own_models_of_cli:nothing --data iris --method snip --out p", "has no 'nothing'"),
        ("prune own_models_of_cli:broken --data iris --method snip --out p", "RuntimeError: no way"),
        ("prune own_models_of_cli:not_a_number --data iris --method magnitude --out p", "NaN or infinite"),
        (
            "prune own_models_of_cli:other_inputs --data iris --method magnitude --out p",
            r"own_models_of_cli:other_inputs cannot take examples of the shape \(4,\)",
        ),
        (
            f"{PRUNE.replace('magnitude', 'random_units')} --set sparsity=0.99",
            "0.99 removes 8 of 8 units, but the floor of 0.001 per layer allows 7",
        ),
        (
            "prune own_models_of_cli:residual --data iris --method random_units --out p",
            r"no group that can be pruned: into \(residual stream\): the residual stream stays unless",
        ),
        ("prune own_models_of_cli:three_outputs --method oracle_units --out p", "score .oracle. needs data"),
        pytest.param(
            "prune own_models_of_cli:three_outputs --method oracle_units --data california_housing --out p",
            r"outputs have the shape \(\d+, 3\) but the targets \(\d+, 1\)",
            marks=pytest.mark.skipif(
                not os.environ.get("PRUNEKIT_DATA"), reason="PRUNEKIT_DATA names no folder of real data"
            ),
        ),
        ("compare nothing", "no study 'nothing'; `prunekit compare --list` lists all .*yaml"),
        ("compare nothing.yaml", "cannot read nothing.yaml: No such file"),
        ("compare digits-quick --workers 0", "workers = 0: a whole number of at least 1 and at most 1,024"),
        ("compare digits-quick --workers many", "--workers"),
        ("compare digits-quick --seeds 0", "seeds = 0"),
        (
            "compare digits-quick --set training.epoch=3",
            "unknown key 'epoch'; .* allowed keys are: augment, batch_size",
        ),
        ("compare digits-quick --set dataset=nothing", "no dataset 'nothing'"),
        ("compare digits-quick --set model=nothing_there:f", "nobody has allowed: .*--allow nothing_there"),
        (
            "compare digits-quick --set model=nothing_there:f --allow nothing_there",
            "model: .*cannot import 'nothing_there'",
        ),
        ("compare digits-quick --set seeds", "write key=value"),
        ("compare digits-quick --out own_models_of_cli.py", "is a file: give a folder"),
        ("compare digits-quick --out .", "is not empty and holds no study: choose another folder with --out"),
        ("compare --json", "name a study of `prunekit compare --list`"),
        ("report nothing", "nothing holds no study: there is no study.json"),
        ("report .", "holds no study"),
        ("inspect mlp", "add --data .*--input-shape"),
        ("inspect own_models_of_cli:other_inputs", "the shape of an example is not known"),
        ("inspect mlp --input-shape 3,x", "--input-shape '3,x': write whole numbers joined by commas"),
        ("inspect mlp --input-shape 0", "--input-shape '0'"),
        ("inspect mlp --input-shape 4 --batch 0", "--batch"),
        ("inspect own_models_of_cli:other_inputs --input-shape 4", "cannot take examples"),
        ("methods nothing", "no method 'nothing'"),
        ("nothing", "No such command 'nothing'"),
        ("--nothing", "No such option"),
    ],
)
def test_bad_input_is_told_in_one_line(command, line, message, tmp_path):
    complaint = command(line).complaint()
    assert re.search(message, complaint), complaint
    assert not {"pruned", "p", "runs"} & set(os.listdir(tmp_path))  # and nothing is written


def test_an_unknown_key_in_a_recipe_is_named_with_its_place(command, tmp_path):
    (tmp_path / "r.yaml").write_text("schedule: {name: one_shot, sparsity: 0.5, colour: red}")
    complaint = command("prune mlp --recipe r.yaml --data iris --out p").complaint()
    assert "schedule: one_shot: unknown key 'colour'; allowed keys are: sparsity" in complaint


def test_an_unknown_key_in_a_study_is_named_with_its_place(command, tmp_path):
    write_study(
        tmp_path / "s.yaml",
        methods={"a": {"recipe": {"schedule": {"name": "allocation_decides", "colour": 1}}}},
    )
    complaint = command("compare s.yaml").complaint()
    assert "methods.a: " in complaint
    assert "unknown key 'colour'; allowed keys are: steps" in complaint


def test_a_layer_that_matches_nothing_is_named(command, tmp_path):
    (tmp_path / "r.yaml").write_text("{schedule: {name: one_shot, sparsity: 0.5}, targets: [conv9]}")
    complaint = command("prune mlp --recipe r.yaml --data iris --out p").complaint()
    assert "'conv9' matches no layer of the model; layers are: fc1" in complaint


def idx(shape, size):
    """An IDX file as MNIST has it, of so many bytes of content."""
    return gzip.compress(struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes(size))


@pytest.mark.parametrize(("images", "size"), [(10, 100), (0, 0)])
def test_a_truncated_or_empty_dataset_is_named(command, tmp_path, images, size):
    folder = tmp_path / "data" / "mnist"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(idx((images, 28, 28), size))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(idx((images,), images))
    for line in (
        "prune lenet_300_100 --data mnist --data-dir data --method magnitude --out p",
        "compare mnist-magnitude --data-dir data",
        "inspect lenet5 --data mnist --data-dir data",
    ):
        assert "-ubyte.gz: " in command(line).complaint()


def test_weights_that_do_not_fit_or_cannot_be_read(command, tmp_path):
    save_file({"fc9.weight": torch.zeros(3)}, tmp_path / "w.safetensors")
    complaint = command(f"{PRUNE} --weights w.safetensors").complaint()
    assert "w.safetensors does not fit the model" in complaint
    (tmp_path / "w.safetensors").write_bytes(b"x" * 20)
    complaint = command(f"{PRUNE} --weights w.safetensors").complaint()
    assert "w.safetensors is not a readable safetensors file" in complaint


def test_a_saved_network_that_is_damaged(command, tmp_path):
    assert command(PRUNE).code == 0
    weights = tmp_path / "pruned" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])
    assert "pruned/model.safetensors is damaged or truncated" in command("inspect pruned").complaint()
    (tmp_path / "pruned" / "prunekit.json").write_text("{")
    assert "prunekit.json is damaged" in command("inspect pruned").complaint()


def test_a_folder_that_is_not_ours_is_not_replaced(command, tmp_path):
    complaint = command("prune mlp --data iris --method magnitude --out .").complaint()
    assert "is not empty and holds no earlier save" in complaint


def test_results_of_another_version_are_refused(command, tmp_path):
    write_study(tmp_path / "s.yaml")
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "study.json").write_text(json.dumps({"format": 99}))
    assert (
        "study.json says format 99, this prunekit reads and writes" in command("compare s.yaml").complaint()
    )
    assert "format is 99" in command("report runs/tiny").complaint()


def test_damaged_tables_are_named(command, tmp_path, studied):
    shutil.copytree(studied, tmp_path / "s")
    (tmp_path / "s" / "results.csv").write_text("study,dataset\n")
    assert "results.csv is damaged or was changed" in command("report s").complaint()
    (tmp_path / "s" / "SHA256SUMS").unlink()
    assert "results.csv line 1: missing columns" in command("report s").complaint()
    (tmp_path / "s" / "results.csv").unlink()
    assert "results.csv" in command("report s").complaint()


def test_a_full_disk_is_told_in_one_line(command, tmp_path, monkeypatch):
    write_study(tmp_path / "s.yaml")

    def full(source, target):
        raise OSError(28, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(os, "replace", full)
    assert command("compare s.yaml").complaint() == "runs/tiny/study.json: No space left on device"
    assert command(PRUNE).complaint() == "pruned: No space left on device"
    assert not (tmp_path / "runs" / "tiny").exists()
    assert not (tmp_path / "pruned").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".pruned")]


def test_a_cell_that_fails_is_exit_code_1_with_the_failure_named(command, tmp_path):
    values = settings()["methods"]
    write_study(tmp_path / "s.yaml", training={"epochs": 2, "optimizer": "sgd", "lr": 1e30}, methods=values)
    ended = command("-q compare s.yaml --workers 1")
    assert ended.code == 1
    assert ended.out == ""
    last = ended.err.splitlines()[-1]
    assert last.startswith("prunekit: error: training of seed 0: failed: the loss is nan")
    assert "Traceback" not in ended.err
