"""What scores and repairs need from data, collected for all that ask in one pass."""

from prunekit.statistics.activity import ActivationStats, Activity, activity
from prunekit.statistics.collect import (
    Collector,
    Found,
    StatContext,
    Statistic,
    average,
    collect,
    sum_over_processes,
)
from prunekit.statistics.connections import ConnectionCorrelation
from prunekit.statistics.cross import CrossMoments
from prunekit.statistics.curvature import GaussNewton, GaussNewtonDiagonal
from prunekit.statistics.gradients import MeanGradient
from prunekit.statistics.inputs import (
    ChannelCovariance,
    ChannelMagnitude,
    ChannelMean,
    InputSquares,
    InputStatistic,
    LayerHessian,
    LayerInputMean,
)
from prunekit.statistics.maxout import MaxoutMaxima
from prunekit.statistics.moments import Moments
from prunekit.statistics.unit_statistic import UnitStatistic
from prunekit.statistics.units import (
    FirstOrderTaylor,
    OracleChange,
    Relevance,
    TaylorChange,
    UnitMacs,
)

__all__ = [
    "ActivationStats",
    "Activity",
    "ChannelCovariance",
    "ChannelMagnitude",
    "ChannelMean",
    "Collector",
    "ConnectionCorrelation",
    "CrossMoments",
    "FirstOrderTaylor",
    "Found",
    "GaussNewton",
    "GaussNewtonDiagonal",
    "InputSquares",
    "InputStatistic",
    "LayerHessian",
    "LayerInputMean",
    "MaxoutMaxima",
    "MeanGradient",
    "Moments",
    "OracleChange",
    "Relevance",
    "StatContext",
    "Statistic",
    "TaylorChange",
    "UnitMacs",
    "UnitStatistic",
    "activity",
    "average",
    "collect",
    "sum_over_processes",
]
