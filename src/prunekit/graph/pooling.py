"""How numbers on the entries of a tensor become one per unit, in words."""

from typing import Literal

Pool = Literal["sum", "mean", "l2", "max"]
"""How the numbers of one unit within one member become one: `l2` is the root of the sum of squares."""

Combine = Literal["sum", "mean", "max", "first"]
"""How the values of several members become one of the unit."""
