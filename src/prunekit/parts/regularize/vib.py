"""Gates by the variational information bottleneck: Gaussian noise that drowns units which tell little."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from prunekit.parts.regularize.gates import Gates
from prunekit.parts.regularize.gating import GateRegularizer
from prunekit.settings import LARGE


def information(mean: Tensor, log_variance: Tensor) -> Tensor:
    """log(1 + μ²/σ²) / 2: what a unit times a gate N(μ, σ²) may tell, at most, in nats.

    It is the divergence KL(N(μ f, σ² f²) || N(0, (μ² + σ²) f²)) from the prior that is best for the gate, for
    any output f of the unit.
    """
    return 0.5 * torch.log1p(mean.square() * torch.exp(-log_variance))


def signal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """μ² / (μ² + σ²): the share of a gate's power that is no noise; over a half where the gate is open."""
    return mean.square() / (mean.square() + log_variance.exp())


def log_alpha(mean: Tensor, log_variance: Tensor) -> Tensor:
    """log(σ²/μ²); a gate is closed from 0 on, where there is as much noise as signal."""
    return log_variance - 2 * mean.abs().log()


class BottleneckGates(Gates):
    """Gates N(μ, σ²).

    Attributes:
        means: μ of each group's gates.
        log_variances: log σ².
    """

    def __init__(self, shapes: Mapping[str, torch.Size], like: Tensor, settings: VIB) -> None:
        super().__init__(settings.name, shapes, settings.leading)
        self.by_example = settings.noise == "example"
        self._noise: dict[tuple[int, int], Tensor] = {}
        self._costs: tuple[list[bool], tuple[Tensor, ...]] | None = None

        def about(start: float) -> nn.ParameterList:
            drawn = [torch.randn(shape, dtype=like.dtype, device=like.device) for shape in shapes.values()]
            return nn.ParameterList(start + 0.01 * each for each in drawn)

        self.means, self.log_variances = about(1.0), about(settings.log_variance)

    def __getstate__(self) -> dict[str, Any]:
        """Without the values of a run."""
        return {**super().__getstate__(), "_noise": {}}

    def draw(self) -> None:
        """New values; those of examples when it is known how many there are."""
        self._noise = {}
        if self.training and self.by_example:
            self.values = []
        else:
            super().draw()

    def of_examples(self, place: int, examples: int) -> Tensor:
        """(examples, gates) values of a group, the same wherever the units of a run are read."""
        if (place, examples) not in self._noise:
            self._noise[place, examples] = self.sample(*self.learned[place], examples=examples)
        return self._noise[place, examples]

    def sample(self, *learned: Tensor, examples: int | None = None) -> Tensor:
        """One value for a batch, or one for each example."""
        mean, log_variance = learned
        shape = mean.shape if examples is None else (examples, *mean.shape)
        noise = torch.randn(shape, dtype=mean.dtype, device=mean.device)
        return mean + noise * torch.exp(0.5 * log_variance)

    def gate(self, *learned: Tensor) -> Tensor:
        """The mean, where it exceeds the noise."""
        return learned[0] * (log_alpha(*learned) < 0)

    def opened(self, *learned: Tensor) -> Tensor:
        """The mean."""
        return learned[0]

    def rank(self, *learned: Tensor) -> Tensor:
        """-log alpha."""
        return -log_alpha(*learned)

    def openness(self, *learned: Tensor) -> Tensor:
        """The share of signal."""
        return signal(*learned)

    def penalty(self, share: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """The mean information that gates let through, each weighted by the share that goes with it alone."""
        if self._costs is None or self._costs[0] != self.counted:
            whole = [torch.ones_like(mean, requires_grad=True) for mean in self.means]
            costs = torch.autograd.grad(share(whole), whole, materialize_grads=True)
            self._costs = self.counted, costs
        told = [information(*learned) for learned in self.learned]
        return torch.stack([(c * each).sum() for c, each in zip(self._costs[1], told, strict=True)]).sum()


class VIB(GateRegularizer):
    """Gaussian gates on whole units, with a penalty on the information that they let through: VIBNet.

    In training what reads a unit takes it times a sample of N(μ, σ²), drawn for each example, and the penalty
    is the mean of log(1 + μ²/σ²) / 2 over the gates. Noise hides what tells little about the loss; where σ²
    has reached μ², the unit is closed. At the end of the training the gates are hardened: μ is multiplied
    into the weights that read the unit, with exact zeros where it is closed, which the allocation `zeros`
    removes. The shape is found by the `strength`. Where a `density` is given, the Lagrangian of `l0` leads
    the mean share of signal, μ² / (μ² + σ²), to it beside the penalty, and in the end the gates with the
    least noise for their signal stay, exactly so many.

    Frozen parameters and what the training does not run are left alone, as by `l0`.

    Attributes:
        noise: drawn for each `example`, as published, or once for a `batch`, as by `l0`, on the weights.
        inputs: whether the network's input features have gates, too.
        counts: how the information is weighted: each gate once, or as often as its unit has positions, as
            published for convolutions, or by the parameters or MACs that go with the unit.
        strength: of the penalty; the published factor of the sum times the number of gates.
        density: the share of gates that stays, or the shares by patterns, as of `l0`; None for those that the
            strength leaves open.
        log_variance: log σ² at first; μ is 1.
        lr: of the gates; it falls with that of the weights.
        multiplier_lr: how fast the multipliers rise.
        curvature: c.
        ramp: the steps over which the target falls, at most all those of the training; None for half of them,
            or 1,000 in a loop of your own, which does not say how long it is.
    """

    name = "vib"
    paper = "Dai, Zhu, Guo, Wipf 2018 (VIBNet), arXiv 1802.10399"
    noise: Literal["example", "batch"] = "example"
    strength: float = Field(default=0.1, gt=0, le=LARGE)
    log_variance: float = Field(default=-9.0, ge=-LARGE, lt=0)

    def gates(self, shapes: Mapping[str, torch.Size], like: Tensor) -> Gates:
        """Open gates with little noise."""
        return BottleneckGates(shapes, like, self)
