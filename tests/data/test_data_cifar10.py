import numpy as np
import pytest
from synthetic_data_files import cifar_contents, write_cifar

from prunekit.data import DataSettings, load
from prunekit.errors import DataError


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
