"""How a cascade is grown."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from prunekit.growing.activations import UnitActivation
from prunekit.settings import Settings


class CascadeSettings(Settings):
    """The settings of cascade correlation (Fahlman & Lebiere 1990).

    Both phases work on all examples at once, so an epoch is one step of the optimizer. A phase ends at its
    number of epochs, or when `patience` epochs have not improved it by the fraction `improvement`.

    The candidates are trained by Rprop where the paper has Quickprop. Both adapt the step of every weight by
    itself from the full gradient, and Rprop is in torch and has no maximum growth factor, sigmoid-prime
    offset or epsilon per example to tune. As it looks at signs only, no candidate of a pool acts on another,
    which a line search over the whole pool (L-BFGS) would not grant.

    The outputs are linear, which makes their training convex under both losses: L-BFGS with a line search
    finds the minimum in few epochs, never goes up, and has no learning rate to set. Logistic outputs, which
    the paper allows, are not offered: without the authors' sigmoid-prime offset, which is no gradient, they
    saturate on wrong examples and stay there.

    Attributes:
        max_units: where growing ends at the latest; 0 trains the outputs alone.
        target_error: growing ends when the training error is not above it.
        loss: `squared_error` for real values and for classes as one-hot (the paper's), or `cross_entropy` for
            classes; both as in `prunekit.losses`, a mean over the examples.
        activation: of the hidden units; the gaussian is exp(-x^2 / 2).
        candidates: the number of units in a pool, of which the best is installed.
        candidate_optimizer: what maximises S.
        candidate_lr: the first step of Rprop, or the learning rate of Adam.
        candidate_epochs: at most so many for a pool.
        candidate_patience: epochs without improvement of the best candidate after which the pool is done.
        candidate_improvement: the fraction by which the best S must rise to count.
        output_epochs: at most so many after each installation.
        output_patience: epochs in which the error must fall by the next setting.
        output_improvement: the fraction by which the error must fall to count.
    """

    max_units: int = Field(default=20, ge=0)
    target_error: float = Field(default=0.0, ge=0)
    loss: Literal["squared_error", "cross_entropy"] = "squared_error"
    activation: UnitActivation = "logistic"
    candidates: int = Field(default=8, ge=1)
    candidate_optimizer: Literal["rprop", "adam"] = "rprop"
    candidate_lr: float = Field(default=0.05, gt=0)
    candidate_epochs: int = Field(default=200, ge=1)
    candidate_patience: int = Field(default=12, ge=1)
    candidate_improvement: float = Field(default=0.01, ge=0)
    output_epochs: int = Field(default=200, ge=1)
    output_patience: int = Field(default=12, ge=1)
    output_improvement: float = Field(default=0.01, ge=0)
