"""Whole studies in this process: what is written and what is repeated."""

import json

import pytest
import torch
from safetensors.torch import load_file

from prunekit import load_pretrained
from prunekit.errors import InputError
from prunekit.folder_lock import only_run
from prunekit.study import Study, run_study
from prunekit.study_files import FORMAT
from tiny_study import hidden, one_shot, settings, stages, tables, tiny

pytestmark = pytest.mark.usefixtures("finished", "no_report")  # the first with its report


def run(folder, **changes):
    return run_study(tiny(**changes), folder, workers=1)


def test_every_step_of_every_cell_is_a_row(finished):
    rows, layers = tables(finished)
    found = [(row["method"], row["seed"], row["step"], row["kept"]) for row in rows]
    assert found[:2] == [("dense", "0", "0", "56"), ("dense", "1", "0", "56")]
    assert [row[:3] for row in found[2:]] == [
        ("random", "0", "1"),
        ("random", "1", "1"),
        ("random", "0", "1"),
        ("random", "1", "1"),
        *(("tickets", seed, step) for seed in "01" for step in "123"),
    ]
    assert [row["kept"] for row in rows if row["method"] == "random"] == ["28", "28", "11", "11"]
    assert len(layers) == 2 * (len(rows) - 2)
    for row in rows[2:]:
        kept = [
            int(layer["kept"])
            for layer in layers
            if all(layer[key] == row[key] for key in ("method", "cell", "seed", "step"))
        ]
        assert sum(kept) == int(row["kept"])


def test_rows_say_what_the_issue_asks_for(finished):
    rows, _ = tables(finished)
    for row in rows:
        assert (row["study"], row["dataset"], row["model"]) == ("tiny", "iris", "mlp")
        assert 0 <= float(row["test_accuracy"]) <= 1
        assert float(row["test_loss"]) > 0
        assert int(row["nonzeros"]) <= int(row["parameters"])
        assert float(row["compression_ratio"]) == pytest.approx(int(row["prunable"]) / int(row["kept"]))


def test_all_methods_start_from_the_one_network_of_their_seed(finished, tmp_path):
    networks = sorted((finished / "networks").glob("*/seed-*/trained.safetensors"))
    assert len(networks) == 2
    # a cell that removes nothing but the smallest weight is the dense network in all others
    run(tmp_path / "s", seeds=1, methods={"gentle": one_shot("magnitude", 0.02)}, controls={})
    (saved,) = (tmp_path / "s").glob("cells/*/seed-0/model")
    dense = load_file(next((tmp_path / "s").glob("networks/*/seed-0/trained.safetensors")))
    pruned = load_pretrained(saved).state_dict()
    changed = sum(int((pruned[name] != value).sum()) for name, value in dense.items())
    assert changed == 1
    # and it is the same dense network as in the other study of the same training
    again = load_file(networks[0])
    assert all(torch.equal(again[name], value) for name, value in dense.items())


def test_the_pruned_networks_can_be_loaded_and_are_as_sparse_as_their_row_says(finished):
    for folder in finished.glob("cells/*/seed-*"):
        row = json.loads((folder / "result.json").read_text())["rows"][-1]
        model = load_pretrained(folder / "model")
        kept = sum(int((p != 0).sum()) for p in model.parameters() if p.dim() > 1)
        assert kept == row["kept"]


def test_nothing_temporary_is_left(finished):
    assert hidden(finished) == []
    assert not list(finished.rglob("state.safetensors"))


def test_the_study_can_be_run_again_from_its_description(finished, tmp_path):
    saved = json.loads((finished / "study.json").read_text())
    assert saved["format"] == FORMAT
    assert saved["primary"] == "test_accuracy"
    assert saved["command"] == "prunekit compare tiny --seeds 2"
    run_study(Study.parse(saved["study"]), tmp_path / "again", workers=1)
    assert tables(tmp_path / "again") == tables(finished)


def test_a_finished_study_repeats_nothing(tmp_path):
    run(tmp_path)
    before = stages(tmp_path)
    assert len(before) == 8
    run(tmp_path)
    assert stages(tmp_path) == before


def test_one_more_method_or_seed_runs_only_the_new_cells(tmp_path):
    run(tmp_path)
    before = stages(tmp_path)
    more = settings()["methods"] | {"magnitude": one_shot("magnitude", 0.5)}
    run(tmp_path, methods=more)
    after = stages(tmp_path)
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()
    run(tmp_path, methods=more, seeds=3)
    assert len(stages(tmp_path)) == len(after) + 5
    assert after.items() <= stages(tmp_path).items()


def test_another_training_is_another_network(tmp_path):
    run(tmp_path)
    before, (rows, _) = stages(tmp_path), tables(tmp_path)
    run(tmp_path, training={"epochs": 3})
    after, (new, _) = stages(tmp_path), tables(tmp_path)
    assert before.items() <= after.items()  # the earlier results stay where they are
    assert len(after) == 2 * len(before)
    assert len(new) == len(rows)
    assert new != rows


def test_cells_that_share_a_folder_are_run_once(tmp_path):
    methods = {"a, b": one_shot("magnitude", 0.5), "a (b)": one_shot("magnitude", 0.5)}
    run(tmp_path, methods=methods, controls={}, seeds=1)
    assert len(stages(tmp_path)) == 2
    rows, _ = tables(tmp_path)
    assert [row["method"] for row in rows] == ["dense", "a, b", "a (b)"]
    assert rows[1]["test_loss"] == rows[2]["test_loss"]


def test_a_folder_at_which_another_run_is_at_work_is_refused(tmp_path):
    with only_run(tmp_path / "s"), pytest.raises(InputError, match="another run is at work in"):
        run(tmp_path / "s")
    assert not (tmp_path / "s" / "study.json").exists()
    run(tmp_path / "s")


def test_with_an_order_of_layers_a_round_is_one_result(tmp_path):
    recipe = {
        "score": "magnitude",
        "allocation": "per_layer",
        "order": "forward",
        "schedule": {"name": "linear", "sparsity": 0.6, "steps": 2},
    }
    run_study(tiny(methods={"layers": {"recipe": recipe}}, controls={}), tmp_path / "run")
    rows, layers = tables(tmp_path / "run")
    pruned = [row for row in rows if row["method"] == "layers" and row["seed"] == "0"]
    assert [row["step"] for row in pruned] == ["2", "4"]
    assert [round(float(row["sparsity"]), 1) for row in pruned] == [0.3, 0.6]
    assert {row["step"] for row in layers if row["method"] == "layers"} == {"2", "4"}
