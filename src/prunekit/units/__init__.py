"""What units are worth, by the truth and by every estimate of it: of any network, and faster on a chain.

What is read of a unit is multiplied by a gain: 1 = on, 0 = off. Every error is the mean over the examples.
Nothing here changes a network: it is looked at in evaluation mode.
"""

from prunekit.units.gains import (
    GainDerivatives,
    diagonal_recursion,
    gain_derivatives,
    gain_sweep,
    relevance,
)
from prunekit.units.oracle import Elimination, eliminate, oracle_changes

__all__ = [
    "Elimination",
    "GainDerivatives",
    "diagonal_recursion",
    "eliminate",
    "gain_derivatives",
    "gain_sweep",
    "oracle_changes",
    "relevance",
]
