"""Datasets as plain tensors: read from a folder or downloaded, split by a seed, standardised."""

from prunekit.data.dataset import Dataset, DataSettings, Split, Task, from_tensors
from prunekit.data.loading import load, names

__all__ = ["DataSettings", "Dataset", "Split", "Task", "from_tensors", "load", "names"]
