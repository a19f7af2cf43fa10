"""The experiment with merged layers, on random images and a network of a few channels."""

import csv
from functools import cache

import pytest
import torch

import rebirth
from prunekit.data import Dataset, Split

TINY = {"name": "googlenet_small", "stem": [4, 4, 6], "blocks": [[2, 3, 4, 2, 3, 2]] * 3}


@cache
def images():
    """Random images of two classes."""
    torch.manual_seed(0)
    parts = [Split(torch.randn(count, 3, 16, 16), torch.arange(count) % 2) for count in (48, 8, 8)]
    return Dataset("random", "classification", *parts, outputs=2)


def lines(name):
    with (rebirth.FOLDER / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Everything as it is, but small."""
    monkeypatch.setattr(rebirth, "FOLDER", tmp_path / "tables")
    monkeypatch.setattr(rebirth, "data", images)
    monkeypatch.setattr(rebirth, "MODEL", TINY)
    monkeypatch.setattr(rebirth, "ROUNDS", 1)
    monkeypatch.setattr(rebirth, "BATCHES", {1: 1, 4: 1})
    for name in ("TRAINING", "TUNING", "SLOW"):
        brief = getattr(rebirth, name).model_copy(update={"epochs": 1, "batch_size": 16})
        monkeypatch.setattr(rebirth, name, brief)
    monkeypatch.setattr("sys.argv", ["rebirth.py", "--seeds", "1", "--scratch"])
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_all_tables_are_written_once(small):
    rebirth.main()
    found = {(row["network"], row["state"]): row for row in lines("accuracy")}
    assert list(found) == [
        *(("whole", state) for state in ("trained", "fine-tuned")),
        *((way, state) for way in rebirth.WAYS for state in ("merged", "fine-tuned")),
    ]
    whole, chosen = (int(found[name, "fine-tuned"]["macs"]) for name in ("whole", rebirth.CHOSEN))
    # conv3 gives 6 channels from 3 x 3 x 4 numbers: at 8 x 8 places before, then at 4 x 4
    assert whole - chosen == 6 * 3 * 3 * 4 * (8 * 8 - 4 * 4)
    assert [int(row["macs"]) for row in lines("scratch")] == [whole, chosen]
    alone = {row["network"] for row in lines("alone")}
    assert len(alone) == 1 + 8
    assert alone < {row["network"] for row in lines("times")}
    assert [row["network"] for row in lines("blocks")] == [
        way for way, count in zip(rebirth.WAYS, (1, 8, 8), strict=True) for _ in range(count)
    ]
    times = {(row["network"], row["batch"]): row for row in lines("times") if row["layers"] == "all"}
    assert len(times) == 2 * (4 + 8)
    before, after = (times[name, "4"] for name in ("whole", rebirth.CHOSEN))
    ratio = float(before["milliseconds"]) / float(after["milliseconds"])
    assert float(after["times_as_fast"]) == pytest.approx(ratio, rel=1e-2)
    texts = {path.name: path.read_text() for path in rebirth.FOLDER.iterdir()}
    rebirth.main()
    assert {path.name: path.read_text() for path in rebirth.FOLDER.iterdir()} == texts


def test_a_network_that_is_kept_is_not_trained_again(small, tmp_path, monkeypatch):
    first = rebirth.trained(0, tmp_path / "kept")
    monkeypatch.setattr(rebirth, "train", None)
    again = rebirth.trained(0, tmp_path / "kept")
    for one, other in zip(first.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(one, other)
