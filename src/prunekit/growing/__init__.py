"""Growing a network unit by unit: cascade correlation, the opposite way to a small number of units.

Source: Fahlman & Lebiere (1990), The Cascade-Correlation Learning Architecture, NIPS 2.
"""

from prunekit.growing.cascade import CascadeRow, Grown, grow, smallest_units
from prunekit.growing.network import CascadeNetwork, CascadeSettings, correlation

__all__ = [
    "CascadeNetwork",
    "CascadeRow",
    "CascadeSettings",
    "Grown",
    "correlation",
    "grow",
    "smallest_units",
]
