"""What scores and repairs need from data, collected for all that ask in one pass."""

from prunekit.statistics.collect import Collector, Found, Statistic, Subject, collect, sum_over_processes
from prunekit.statistics.consumers import InputCovariance, MeanInput, UnitCovariance
from prunekit.statistics.gradients import MeanGradient
from prunekit.statistics.maxout import MaxoutMaxima
from prunekit.statistics.units import (
    Behaviour,
    FeatureChange,
    PredictedChange,
    Relevance,
    Significance,
    SwitchingOff,
    UnitMacs,
    UnitStatistic,
)

__all__ = [
    "Behaviour",
    "Collector",
    "FeatureChange",
    "Found",
    "InputCovariance",
    "MaxoutMaxima",
    "MeanGradient",
    "MeanInput",
    "PredictedChange",
    "Relevance",
    "Significance",
    "Statistic",
    "Subject",
    "SwitchingOff",
    "UnitCovariance",
    "UnitMacs",
    "UnitStatistic",
    "collect",
    "sum_over_processes",
]
