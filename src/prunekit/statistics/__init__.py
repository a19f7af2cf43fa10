"""What scores and repairs need from data, collected for all that ask in one pass."""

from prunekit.statistics.average import average
from prunekit.statistics.collect import Collector, Found, Statistic, Subject, collect
from prunekit.statistics.connections import ConnectionCorrelation
from prunekit.statistics.consumers import InputCovariance, MeanInput, UnitCovariance
from prunekit.statistics.cross import CrossMoments
from prunekit.statistics.curvature import GaussNewton, GaussNewtonDiagonal
from prunekit.statistics.gradients import MeanGradient
from prunekit.statistics.inputs import InputMean, InputSquares, InputStatistic, LayerHessian, row_layers
from prunekit.statistics.maxout import MaxoutMaxima
from prunekit.statistics.moments import Moments
from prunekit.statistics.processes import sum_over_processes
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
    "ConnectionCorrelation",
    "CrossMoments",
    "FeatureChange",
    "Found",
    "GaussNewton",
    "GaussNewtonDiagonal",
    "InputCovariance",
    "InputMean",
    "InputSquares",
    "InputStatistic",
    "LayerHessian",
    "MaxoutMaxima",
    "MeanGradient",
    "MeanInput",
    "Moments",
    "PredictedChange",
    "Relevance",
    "Significance",
    "Statistic",
    "Subject",
    "SwitchingOff",
    "UnitCovariance",
    "UnitMacs",
    "UnitStatistic",
    "average",
    "collect",
    "row_layers",
    "sum_over_processes",
]
