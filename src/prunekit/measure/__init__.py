"""Abilities and costs of a model: quality, parameters, MACs, bytes, time and memory."""

from prunekit.measure.amounts import Cost, read_amount
from prunekit.measure.counts import Counts, LayerCount, count
from prunekit.measure.forward_pass import Latency, latency, peak_memory, state_bytes
from prunekit.measure.human import human_bytes, human_count, human_seconds, plain_table
from prunekit.measure.layer_table import layer_table
from prunekit.measure.layer_times import layer_times
from prunekit.measure.perplexity import perplexity
from prunekit.measure.quality import Quality, evaluate
from prunekit.measure.task_metrics import metrics

__all__ = [
    "Cost",
    "Counts",
    "Latency",
    "LayerCount",
    "Quality",
    "count",
    "evaluate",
    "human_bytes",
    "human_count",
    "human_seconds",
    "latency",
    "layer_table",
    "layer_times",
    "metrics",
    "peak_memory",
    "perplexity",
    "plain_table",
    "read_amount",
    "state_bytes",
]
