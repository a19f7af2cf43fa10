"""Pipes that never end, devices without an end, and names that lead out of a folder."""

import os
import signal
from pathlib import Path

import pytest
import torch

from prunekit.digests import (
    SUMS,
    check_sum,
    digest_of_file,
    read_tensors,
    write_json_with_digest,
    write_tensors,
)
from prunekit.errors import DataError
from prunekit.files import open_regular, read_bounded, read_json, remove_leftovers
from prunekit.report.read_tables import read_results
from prunekit.study.layout import RESULT, Results, stage_of

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no pipes and devices in folders there")

READERS = {
    "open_regular": open_regular,
    "read_json": read_json,
    "read_tensors": read_tensors,
    "digest_of_file": digest_of_file,
    "read_results": read_results,
    "sums": lambda path: check_sum(path.with_name("results.csv")),
}


@pytest.fixture(autouse=True)
def alarm():
    """A test that hangs, or reads without end, fails."""

    def stop(number, frame):
        raise TimeoutError("it hangs")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero", "/dev/null"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_regular_file_is_refused(tmp_path, reader, kind):
    path = tmp_path / SUMS
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    with pytest.raises(DataError, match=f"{path} is no regular file"):
        READERS[reader](path)


def test_a_folder_and_a_missing_file_are_told_as_before(tmp_path):
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "a")


def test_no_more_is_read_than_the_limit(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))
    assert len(read_bounded(path, 1 << 20, "a test")) == 1 << 20
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="a is larger than the 1 MiB that are read of a test"):
        read_bounded(path, 1 << 20, "a test")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no files without a size")
def test_a_file_that_does_not_know_its_size_is_read_to_its_end():
    assert read_bounded(Path("/proc/self/maps"), 64 << 20, "a test")


def test_regular_files_are_read_as_before(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    assert read_tensors(tmp_path / "a.safetensors")[0]["x"].tolist() == [1, 1]


NAMES = ["/dev/zero", "../b", "a/../../b", "a\\b", "C:b", "a\0b", "", ".", "a//b", "//b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_leads_out_of_the_folder_of_a_stage_is_refused(tmp_path, name):
    layer = {"layer": "a", "shape": "2", "step": 0, "parameters": 1, "kept": 1, "sparsity": 0.0}
    row = {"step": 0, "prunable": 1, "kept": 1, "sparsity": 0.0, "compression_ratio": 1.0, "seconds": 0.0}
    folder = tmp_path / "cells/a/seed-0"
    about = {"stage": stage_of(folder), "rows": [row], "layers": [layer], "files": {name: "0"}}
    write_json_with_digest(folder / RESULT, about)
    with pytest.raises(DataError, match=r"result.json is damaged: .* names no file in its folder"):
        Results().cell(folder)


def test_leftovers_that_are_links_go_and_what_they_lead_to_stays(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / ".kept").touch()
    (tmp_path / "f").mkdir()
    (tmp_path / "f/.link").symlink_to(victim)
    remove_leftovers(tmp_path / "f")
    assert os.listdir(tmp_path / "f") == []
    (tmp_path / "f/link").symlink_to(victim)
    remove_leftovers(tmp_path / "f/link")
    assert os.listdir(victim) == [".kept"]
