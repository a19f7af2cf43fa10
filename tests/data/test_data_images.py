import gzip

import numpy as np
import pytest
import torch
from synthetic_data_files import MNIST_FILES, cifar_contents, idx_bytes, write_cifar, write_mnist

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


@pytest.mark.parametrize("folder", ["cifar-10-batches-bin", "cifar10/cifar-10-batches-bin", "cifar10"])
def test_batches_are_read_from_every_layout(tmp_path, folder):
    write_cifar(tmp_path / folder)
    dataset = load("cifar10", tmp_path, download=False)
    assert (dataset.task, dataset.outputs, dataset.input_shape) == ("classification", 10, (3, 32, 32))
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (90, 10, 10)
    assert dataset.validation.targets.bincount().tolist() == [1] * 10


def test_planes_become_channels_and_rows_stay_rows(tmp_path):
    write_cifar(tmp_path / "cifar10")
    dataset = load("cifar10", tmp_path, download=False)
    records = np.frombuffer(cifar_contents()["test_batch.bin"], np.uint8).reshape(-1, 3073)
    red_top_left = records[:, 1].astype(float)
    blue_second_row = records[:, 1 + 2 * 1024 + 32].astype(float)
    for pixels, inputs in (
        (red_top_left, dataset.test.inputs[:, 0, 0, 0]),
        (blue_second_row, dataset.test.inputs[:, 2, 1, 0]),
    ):
        assert np.corrcoef(pixels, inputs)[0, 1] > 0.999999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda content: content[:-7],
            r"61453 bytes found, expected a multiple of 3073 \(58387 or 61460\)",
        ),
        (lambda content: b"", "empty"),
        (lambda content: b"\x0a" + content[1:], "record 1 has the class 10"),
        (lambda content: b"<html>nothing here</html>", "web page"),
    ],
)
@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_damaged_batch_is_named(tmp_path, name, change, message):
    path = write_cifar(tmp_path / "cifar10", test=20) / name
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message) as caught:
        load("cifar10", tmp_path, download=False)
    assert str(path) in str(caught.value)


def test_real_images_are_read(tmp_path, real_data):
    """Six of the real sheets, written in the official layout; the whole set would take too long."""
    image_module = pytest.importorskip("PIL.Image")
    if not (real_data / "cifar10" / "batch_00.png").exists():
        pytest.skip("the data folder has no sheets of CIFAR-10 images")
    labels = np.loadtxt(real_data / "cifar10" / "labels.txt", dtype=np.uint8)
    folder = tmp_path / "cifar10"
    folder.mkdir()
    for number in range(6):
        sheet = 50 if number == 5 else number
        pixels = np.asarray(
            image_module.open(real_data / "cifar10" / f"batch_{sheet:02d}.png").convert("RGB")
        )
        planes = pixels.reshape(1000, 1024, 3).transpose(0, 2, 1).reshape(1000, 3072)
        name = "test_batch.bin" if number == 5 else f"data_batch_{number + 1}.bin"
        batch = np.concatenate([labels[1000 * sheet : 1000 * (sheet + 1), None], planes], axis=1)
        (folder / name).write_bytes(batch.tobytes())
    dataset = load(DataSettings(name="cifar10", validation=0.2), tmp_path, download=False)
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (4000, 1000, 1000)
    np.testing.assert_allclose(dataset.train.inputs.mean((0, 2, 3)), 0, atol=1e-4)
    # Neighbouring pixels of a photograph are alike, which a wrong order of planes or rows would destroy.
    rows = dataset.test.inputs
    assert np.corrcoef(rows[:, :, 1:].flatten(), rows[:, :, :-1].flatten())[0, 1] > 0.9
