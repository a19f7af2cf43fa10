import prunekit.parts.context

from .measured import Budget as Budget
from .measured import Sensitivity as Sensitivity
from .measured import without_lowest as without_lowest
from .rules import ERK as ERK
from .rules import GRID as GRID
from .rules import OWL as OWL
from .rules import BelowMean as BelowMean
from .rules import Global as Global
from .rules import Manual as Manual
from .rules import NoPruning as NoPruning
from .rules import PerLayer as PerLayer
from .rules import Recorded as Recorded
from .rules import SummaryAllocation as SummaryAllocation
from .rules import Threshold as Threshold
from .rules import Zeros as Zeros

Allocation = prunekit.parts.context.Allocation
