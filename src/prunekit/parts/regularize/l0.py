"""L0 regularisation of weights and of whole units, by gates of the hard-concrete distribution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from prunekit import hard_concrete
from prunekit.parts.granularity import Granularity, Weight
from prunekit.parts.regularize.gates import Gates
from prunekit.parts.regularize.gating import GateRegularizer


class HardConcreteGates(Gates):
    """Gates between 0 and 1, both of which they take with a probability.

    Attributes:
        locations: log alpha of each group's gates.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor, settings: L0) -> None:
        super().__init__(settings.name, shapes, settings.leading)
        start = float(hard_concrete.location_of(torch.tensor(settings.openness, dtype=torch.float64)))
        self.locations = nn.ParameterList(
            start + 0.01 * torch.randn(shape, dtype=like.dtype, device=like.device)
            for shape in shapes.values()
        )

    def sample(self, *learned: Tensor) -> Tensor:
        """One value for a batch."""
        (location,) = learned
        return hard_concrete.sample(location, hard_concrete.noise(location))

    def gate(self, *learned: Tensor) -> Tensor:
        """Equation 13."""
        return hard_concrete.final_gate(*learned)

    def opened(self, *learned: Tensor) -> Tensor:
        """As open as the distribution's median."""
        return torch.sigmoid(*learned)

    def rank(self, *learned: Tensor) -> Tensor:
        """The location."""
        return learned[0]

    def openness(self, *learned: Tensor) -> Tensor:
        """The probability with which a gate is not zero."""
        return hard_concrete.open_probability(*learned)


class L0(GateRegularizer):
    """Hard-concrete gates on weights or whole units, with a penalty on what the open ones leave.

    Each gate multiplies a weight, or whatever reads a unit, biases of the unit included; one sample of all
    gates serves a batch. At the end of the training the gates are hardened: multiplied into the weights,
    with exact zeros where they are closed, which the allocation `zeros` removes. Give a `strength`, or a
    `density` that a Lagrangian l1 (s - t) + (c + l2) (s - t)^2 leads to: its multipliers rise with the excess
    of the share s over the target t, which falls linearly from 1, and in the end the gates that are most
    probably open stay, exactly so many.

    Where a layer norm, or another with statistics over the units, stands before what reads them, and where no
    layer reads them, as the width of attention heads, a gate multiplies all that makes, goes along with and
    reads the unit, as a mask does. Shrinking takes these statistics over the units that are kept.

    Frozen parameters are left as they are: they have no gates, and neither have units that one of them makes
    or reads. What the training does not run stays as it is, and is not counted.

    Attributes:
        of: what has gates: single weights, or the units that pruning by units would remove.
        inputs: whether the network's input features have gates, too.
        counts: what the penalised share is of; for weights the gates are the parameters.
        strength: of the penalty on the expected share, 0 to 1; the paper's λ times the number of gates over
            the number of training examples.
        density: the share of gates that stays; or by patterns of groups or layers, such as
            `{input: 0.1, fc1: 0.2}`, the shares of theirs, each with a Lagrangian of its own. What no pattern
            fits has no gates, and stays.
        openness: the probability with which a gate is open at first.
        lr: of the gates; it falls with that of the weights.
        multiplier_lr: how fast the multipliers rise.
        curvature: c.
        ramp: the steps over which the target falls, at most all those of the training; None for half of them,
            or 1,000 in a loop of your own, which does not say how long it is.
    """

    name = "l0"
    paper = (
        "Louizos, Welling, Kingma 2018, arXiv 1712.01312; Lagrangian: Xia et al. 2022, arXiv 2204.00408; for "
        "each part of a shape: Xia et al. 2023 (Sheared LLaMA), arXiv 2310.06694"
    )
    of: Literal["units", "weights"] = "units"
    openness: float = Field(default=0.9, gt=0, lt=1)

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.strength is None) == (self.density is None):
            raise ValueError("give either 'strength' (of the penalty) or 'density' (the share that stays)")
        if self.of == "weights" and (self.inputs or self.counts != "gates"):
            raise ValueError("of 'weights' there are no 'inputs', and 'counts' is 'gates'")
        return self

    @property
    def by_example(self) -> bool:  # type: ignore[override]
        """To find units and what they cost."""
        return self.of == "units"

    @property
    def _granularity(self) -> Granularity:
        return Weight() if self.of == "weights" else super()._granularity

    def gates(self, shapes: Mapping[str, torch.Size], like: Tensor) -> Gates:
        """Gates that are open with the probability `openness`."""
        return HardConcreteGates(shapes, like, self)
