"""Datasets as plain tensors: read from a folder or downloaded, split by a seed, standardised."""

from prunekit.data.catalog import load, names
from prunekit.data.custom import from_tensors
from prunekit.data.settings import DataSettings
from prunekit.data.splits import Dataset, Split, Task

__all__ = ["DataSettings", "Dataset", "Split", "Task", "from_tensors", "load", "names"]
