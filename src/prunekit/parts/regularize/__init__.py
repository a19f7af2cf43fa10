"""What acts during training: penalties, group lasso, gates and dropout, on any model and any optimizer."""

from prunekit.parts.regularize.base import Regularizer, StepHooks, check_gradients_are_there, needs_closure
from prunekit.parts.regularize.dropout import Dropout
from prunekit.parts.regularize.group_lasso import GroupLasso
from prunekit.parts.regularize.l0 import L0
from prunekit.parts.regularize.penalties import L1, L2
from prunekit.parts.regularize.vib import VIB

__all__ = [
    "L0",
    "L1",
    "L2",
    "VIB",
    "Dropout",
    "GroupLasso",
    "Regularizer",
    "StepHooks",
    "check_gradients_are_there",
    "needs_closure",
]
