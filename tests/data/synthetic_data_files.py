"""Small files in the official layouts, with random content, for tests that must not need the real ones."""

import gzip
from pathlib import Path

import numpy as np

MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + values.astype(np.uint8).tobytes()


def mnist_contents(train: int = 60, test: int = 20, seed: int = 0) -> dict[str, bytes]:
    """The four files of MNIST by name, each label as often as the others."""
    random = np.random.default_rng(seed)
    contents = {}
    for part, count in (("train", train), ("t10k", test)):
        images = random.integers(0, 256, (count, 28, 28))
        contents[f"{part}-images-idx3-ubyte"] = idx_bytes(images)
        contents[f"{part}-labels-idx1-ubyte"] = idx_bytes(np.arange(count) % 10)
    return contents


def write_mnist(folder: Path, *, zipped: bool = True, **counts: int) -> Path:
    folder.mkdir(parents=True)
    for name, content in mnist_contents(**counts).items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)
    return folder


def cifar_contents(records: int = 20, test: int = 10, seed: int = 0) -> dict[str, bytes]:
    """The six batches of CIFAR-10 by name."""
    random = np.random.default_rng(seed)
    contents = {}
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        count = test if name == "test_batch.bin" else records
        batch = random.integers(0, 256, (count, 3073), dtype=np.uint8)
        batch[:, 0] = np.arange(count) % 10
        contents[name] = batch.tobytes()
    return contents


def write_cifar(folder: Path, **counts: int) -> Path:
    folder.mkdir(parents=True)
    for name, content in cifar_contents(**counts).items():
        (folder / name).write_bytes(content)
    return folder


def csv_text(features: np.ndarray, classes: list[str]) -> str:
    rows = zip(features.tolist(), classes, strict=True)
    return "".join(",".join([*(f"{value:g}" for value in row), label]) + "\n" for row, label in rows)
