"""Exported graphs as JSON and tensors: no pickle, no code, and only operators that are harmless."""

from prunekit.saving.graphs.values import Outputs
from prunekit.saving.graphs.whole import from_json, to_json

__all__ = ["Outputs", "from_json", "to_json"]
