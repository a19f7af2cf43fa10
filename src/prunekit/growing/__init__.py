"""Growing a network unit by unit: cascade correlation, the opposite way to a small number of units.

Source: Fahlman & Lebiere (1990), The Cascade-Correlation Learning Architecture, NIPS 2.
"""

from prunekit.growing.cascade import Grown, grow
from prunekit.growing.correlation import correlation
from prunekit.growing.history import CascadeRow, smallest_units
from prunekit.growing.network import CascadeNetwork
from prunekit.growing.settings import CascadeSettings

__all__ = [
    "CascadeNetwork",
    "CascadeRow",
    "CascadeSettings",
    "Grown",
    "correlation",
    "grow",
    "smallest_units",
]
