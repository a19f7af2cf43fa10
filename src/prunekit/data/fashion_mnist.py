"""Fashion-MNIST (Xiao, Rasul & Vollgraf 2017, arXiv 1708.07747): MNIST's files with clothes in them."""

from __future__ import annotations

from prunekit.data.mnist import MNIST, load_mnist
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset
from prunekit.data.store import Download, Source, Store

FASHION_MNIST = Source(
    dataset="fashion_mnist",
    files=MNIST.files,
    folders=("fashion_mnist", "fashion-mnist", "fashion_mnist/raw", "fashion-mnist/raw", "FashionMNIST/raw"),
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    downloads=(
        Download("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        Download("train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe"),
        Download("t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79"),
        Download("t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310"),
    ),
    into="fashion_mnist",
)


def load_fashion_mnist(settings: DataSettings, store: Store, source: Source = FASHION_MNIST) -> Dataset:
    """60,000 training and 10,000 test images (1, 28, 28) of ten kinds of clothes, in grey.

    Raises:
        DataError: if the files cannot be had, are damaged, or do not fit each other.
    """
    return load_mnist(settings, store, source)
