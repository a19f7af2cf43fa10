import prunekit.parts.context

from .block_scores import BlockInfluence as BlockInfluence
from .gradient_flow import GraSP as GraSP
from .gradient_flow import SynFlow as SynFlow
from .hessian_scores import OBD as OBD
from .hessian_scores import OBS as OBS
from .hessian_scores import BlockFisher as BlockFisher
from .hessian_scores import LayerOBS as LayerOBS
from .unit_scores import N2PS as N2PS
from .unit_scores import Activation as Activation
from .unit_scores import ActivationNorm as ActivationNorm
from .unit_scores import FeatureTaylor as FeatureTaylor
from .unit_scores import Fluctuation as Fluctuation
from .unit_scores import GeometricMedian as GeometricMedian
from .unit_scores import GradCAM as GradCAM
from .unit_scores import MaxoutWins as MaxoutWins
from .unit_scores import NormScale as NormScale
from .unit_scores import Oracle as Oracle
from .unit_scores import OutgoingNorm as OutgoingNorm
from .unit_scores import Skeletonization as Skeletonization
from .unit_scores import ThiNet as ThiNet
from .unit_scores import UnitScore as UnitScore
from .unit_scores import UnitTaylor as UnitTaylor
from .weight_scores import LAMP as LAMP
from .weight_scores import RIA as RIA
from .weight_scores import Correlation as Correlation
from .weight_scores import Gradient as Gradient
from .weight_scores import InputDeviation as InputDeviation
from .weight_scores import InputScore as InputScore
from .weight_scores import Magnitude as Magnitude
from .weight_scores import MagnitudePerBit as MagnitudePerBit
from .weight_scores import Movement as Movement
from .weight_scores import Random as Random
from .weight_scores import Wanda as Wanda
from .weight_scores import WeightGradient as WeightGradient

Score = prunekit.parts.context.Score
Scores = prunekit.parts.context.Scores
