import gzip

import numpy as np
import pytest
import torch
from synthetic_data_files import MNIST_FILES, idx_bytes, write_mnist

from prunekit.data import DataSettings, load
from prunekit.errors import DataError


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion_mnist"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
def test_both_sets_are_read_from_every_layout(tmp_path, name, folder, zipped):
    write_mnist(tmp_path / folder, zipped=zipped)
    dataset = load(name, tmp_path, download=False)
    assert (dataset.name, dataset.outputs, dataset.input_shape) == (name, 10, (1, 28, 28))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54, 6, 20)
    assert dataset.test.targets.tolist() == [number % 10 for number in range(20)]


def test_one_set_is_not_taken_for_the_other(tmp_path):
    write_mnist(tmp_path / "mnist")
    with pytest.raises(DataError, match="fashion_mnist: its files were not found"):
        load("fashion_mnist", tmp_path, download=False)


@pytest.mark.parametrize(
    ("number", "content", "message"),
    [
        (0, idx_bytes(np.zeros((60, 27, 28))), r"size \(27, 28\), expected \(28, 28\)"),
        (1, idx_bytes(np.arange(59) % 10), "59 labels found, expected 60"),
        (1, idx_bytes(np.arange(60) % 11), "a label is 10, expected 0 to 9"),
        (2, idx_bytes(np.zeros((20, 28, 28)))[:-5], "15691 bytes found, 15696 expected"),
        (3, idx_bytes(np.zeros((20, 28, 28))), "magic number is 00000803, expected 00000801"),
        (3, b"<!DOCTYPE html>", "web page"),
        # without mtime=0 the name of the test holds the time, and pytest-xdist refuses to run
        (0, gzip.compress(idx_bytes(np.zeros((60, 28, 28))), mtime=0)[:-20], "truncated"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, number, content, message):
    path = write_mnist(tmp_path / "mnist") / f"{MNIST_FILES[number]}.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load("mnist", tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_sets_without_examples_are_refused(tmp_path):
    write_mnist(tmp_path / "mnist", train=60, test=0)
    with pytest.raises(DataError, match=r"t10k-labels.* there is no label"):
        load("mnist", tmp_path, download=False)


@pytest.mark.mnist
def test_the_real_set_is_whole_stratified_and_standardised(real_data):
    dataset = load("mnist", real_data, download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (54_000, 6_000, 10_000)
    both = dataset.train.targets.bincount() + dataset.validation.targets.bincount()
    assert both.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert (dataset.validation.targets.bincount() - both / 10).abs().max() < 1
    assert dataset.test.targets[:5].tolist() == [7, 2, 1, 0, 4]
    assert abs(dataset.train.inputs.double().mean()) < 1e-5
    assert abs(dataset.train.inputs.double().std() - 1) < 1e-5
    assert 0 < abs(dataset.test.inputs.double().mean()) < 0.1


@pytest.mark.mnist
def test_a_limit_makes_a_quick_run(real_data):
    dataset = load(DataSettings(name="mnist", limit=100, seed=1), real_data, download=False)
    assert len(dataset.train) == 100
    assert len(torch.unique(dataset.train.targets)) == 10
