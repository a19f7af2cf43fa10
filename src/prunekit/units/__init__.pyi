from .gains import GainDerivatives as GainDerivatives
from .gains import diagonal_recursion as diagonal_recursion
from .gains import gain_derivatives as gain_derivatives
from .gains import gain_sweep as gain_sweep
from .gains import relevance as relevance
from .oracle import Elimination as Elimination
from .oracle import eliminate as eliminate
from .oracle import oracle_changes as oracle_changes
