"""What scores and repairs need from data, collected for all that ask in one pass."""

from prunekit.statistics.collect import Collector, Found, Statistic, collect, sum_over_processes
from prunekit.statistics.gradients import MeanGradient

__all__ = ["Collector", "Found", "MeanGradient", "Statistic", "collect", "sum_over_processes"]
