"""What a model can do and what it costs: quality, parameters, MACs, bytes, time and memory."""

from prunekit.measure.counts import Counts, LayerCount, count
from prunekit.measure.human import human_bytes, human_count, human_seconds
from prunekit.measure.latency import Latency, latency
from prunekit.measure.memory import peak_memory
from prunekit.measure.quality import Quality, evaluate
from prunekit.measure.size import state_bytes
from prunekit.measure.table import layer_table

__all__ = [
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
    "peak_memory",
    "state_bytes",
]
