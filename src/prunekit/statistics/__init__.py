"""What scores and repairs need from data, collected for all that ask in one pass."""

from prunekit.statistics.activity import ActivationStats, FirstOrderTaylor
from prunekit.statistics.block_influence import CosineDistance
from prunekit.statistics.collect import (
    Collector,
    Found,
    StatContext,
    Statistic,
    average,
    collect,
)
from prunekit.statistics.curvature import GaussNewton, GaussNewtonDiagonal, RecursiveDiagonal
from prunekit.statistics.inputs import (
    ChannelCovariance,
    ChannelMagnitude,
    ChannelMean,
    ExampleMagnitude,
    InputSquares,
    InputStatistic,
    LayerHessian,
    LayerInputMean,
)
from prunekit.statistics.moments import CrossMoments, Moments
from prunekit.statistics.unit_statistics import (
    MaxoutMaxima,
    OracleChange,
    Relevance,
    TaylorChange,
    UnitMacs,
    UnitStatistic,
)
from prunekit.statistics.weight_statistics import ConnectionCorrelation, MeanGradient

__all__ = [
    "ActivationStats",
    "ChannelCovariance",
    "ChannelMagnitude",
    "ChannelMean",
    "Collector",
    "ConnectionCorrelation",
    "CosineDistance",
    "CrossMoments",
    "ExampleMagnitude",
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
    "RecursiveDiagonal",
    "Relevance",
    "StatContext",
    "Statistic",
    "TaylorChange",
    "UnitMacs",
    "UnitStatistic",
    "average",
    "collect",
]
