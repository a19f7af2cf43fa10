"""The network of cascade correlation, its settings and its two phases: candidate units, then outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init
from torch.optim import LBFGS, Adam, Rprop

from prunekit.errors import InputError
from prunekit.losses import LOSSES
from prunekit.settings import WHOLE, Settings, whole

UnitActivation = Literal["logistic", "tanh", "gaussian"]


def gaussian(x: Tensor) -> Tensor:
    """exp(-x^2 / 2), of any shape: a unit that answers to a strip of its inputs instead of a half space."""
    return torch.exp(-0.5 * x.square())


UNIT_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"logistic": torch.sigmoid, "tanh": torch.tanh, "gaussian": gaussian}
)


class CascadeNetwork(nn.Module):
    """Hidden units of which each reads all inputs and all earlier units; the outputs read everything.

    Maps (N, *shape) with `inputs` features an example to (N, outputs). Every unit is a linear layer with one
    output, `units.0`, `units.1`, ..., and `output` is the last one, so that the names of the state dict do
    not depend on how many follow, and whatever prunes, counts or saves linear layers works here too.

    All values are zeros at first: `grow` or `load_state_dict` fills them. The weights of the units do not
    require gradients, as a unit is frozen once it is installed; `requires_grad_()` thaws them.

    Source: Fahlman & Lebiere (1990), The Cascade-Correlation Learning Architecture, NIPS 2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        units: int = 0,
        *,
        activation: str = "logistic",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """Build a network of zeros.

        Raises:
            InputError: for sizes that are no counts (at least 1 input, 1 output, 0 units), or an unknown
                activation.
        """
        super().__init__()
        for name, size, least in (("inputs", inputs, 1), ("outputs", outputs, 1), ("units", units, 0)):
            whole(name, size, least, WHOLE)
        if activation not in UNIT_ACTIVATIONS:
            raise InputError(f"activation must be one of {', '.join(UNIT_ACTIVATIONS)}, not {activation!r}")
        self.inputs = inputs
        self.outputs = outputs
        self.activation = activation
        self.output = _zeros(inputs, outputs, dtype=dtype, device=device)
        self.units = nn.ModuleList()
        for number in range(units):
            self.install(self.output.weight.new_zeros(inputs + number), self.output.bias.new_zeros(()))

    def extra_repr(self) -> str:
        """The sizes and the activation."""
        return (
            f"inputs={self.inputs}, outputs={self.outputs}, units={len(self.units)}, "
            f"activation={self.activation!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """Raw outputs (N, outputs) for inputs (N, *shape)."""
        return self.output(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        """The inputs (N, *shape) flattened, followed by the values of all units: (N, inputs + units)."""
        features = x.flatten(1)
        for number in range(len(self.units)):
            features = self.extend(features, number)
        return features

    def extend(self, features: Tensor, number: int) -> Tensor:
        """Features (N, inputs + number) with the value of the unit of that number behind them."""
        value = UNIT_ACTIVATIONS[self.activation](self.units[number](features))
        return torch.cat([features, value], 1)

    @torch.no_grad()
    def install(self, weight: Tensor, bias: Tensor) -> None:
        """Add a frozen unit. The outputs start at zero weight from it, so what they compute is unchanged.

        Args:
            weight: (inputs + units,), in the order of `features`.
            bias: a scalar.

        Raises:
            InputError: for other shapes; the network is then unchanged.
        """
        fan_in = self.inputs + len(self.units)
        if weight.shape != (fan_in,) or bias.numel() != 1:
            raise InputError(
                f"unit {len(self.units)} needs a weight ({fan_in},) and a scalar bias, "
                f"not {tuple(weight.shape)} and {tuple(bias.shape)}"
            )
        old = self.output
        unit = _zeros(fan_in, 1, dtype=old.weight.dtype, device=old.weight.device)
        unit.weight.copy_(weight[None])
        unit.bias.copy_(bias.reshape(1))
        self.units.append(unit.requires_grad_(False))
        self.output = _zeros(fan_in + 1, self.outputs, dtype=old.weight.dtype, device=old.weight.device)
        self.output.weight[:, :-1] = old.weight
        self.output.bias.copy_(old.bias)


def _zeros(
    fan_in: int, fan_out: int, *, dtype: torch.dtype | None, device: torch.device | str | None
) -> nn.Linear:
    """A linear layer of zeros; its own initial values would be drawn from torch's global generator."""
    layer = skip_init(  # type: ignore[no-untyped-call]
        nn.Linear, fan_in, fan_out, dtype=dtype, device=device or "cpu"
    )
    assert isinstance(layer, nn.Linear)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


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


def correlation(values: Tensor, errors: Tensor) -> Tensor:
    """S = sum_o |sum_p (V_p - mean V)(E_p,o - mean E_o)| of each candidate (Fahlman & Lebiere 1990).

    The paper calls it a correlation; it is a covariance, summed over the examples and not divided by the
    spreads, so that a candidate that varies more is worth more.

    Args:
        values: (N, candidates), V.
        errors: (N, outputs), E, the outputs minus the targets; its sign does not matter.

    Returns:
        (candidates,), differentiable.

    Raises:
        InputError: if one is not a matrix, or their numbers of examples differ.
    """
    if values.ndim != 2 or errors.ndim != 2 or len(values) != len(errors):
        raise InputError(
            "values must be (N, candidates) and errors (N, outputs), "
            f"not {tuple(values.shape)} and {tuple(errors.shape)}"
        )
    return ((values - values.mean(0)).T @ (errors - errors.mean(0))).abs().sum(1)


@dataclass(frozen=True)
class Candidate:
    """The best unit of a pool.

    Attributes:
        weight: (features,).
        bias: a scalar.
        correlation: its S.
    """

    weight: Tensor
    bias: Tensor
    correlation: float


def best_candidate(
    features: Tensor, errors: Tensor, settings: CascadeSettings, generator: torch.Generator
) -> Candidate:
    """Train a pool and give the unit with the largest S, with the values at which it had it.

    All candidates are trained at once, as the columns of one matrix product, and none acts on another except
    that the whole pool ends when its best one has stopped to improve.

    Args:
        features: (N, features), what the unit will read.
        errors: (N, outputs), the outputs minus the targets.
        settings: of the candidate phase.
        generator: of the initial values, on the CPU, so that all devices start alike.
    """
    weight, bias = _draw(settings.candidates, features, generator)
    kind = Rprop if settings.candidate_optimizer == "rprop" else Adam
    optimizer = kind([weight, bias], lr=settings.candidate_lr)
    activation = UNIT_ACTIVATIONS[settings.activation]
    best = torch.full_like(bias, -1.0)
    best_weight, best_bias = weight.detach().clone(), bias.detach().clone()
    scale = float(errors.norm()) or 1.0  # Adam has an absolute limit, and S the scale of the targets
    mark, waited = 0.0, 0
    for _ in range(settings.candidate_epochs):
        found = correlation(activation(features @ weight.T + bias), errors)
        with torch.no_grad():
            better = found > best  # false for NaN
            best = torch.where(better, found, best)
            best_weight = torch.where(better[:, None], weight, best_weight)
            best_bias = torch.where(better, bias, best_bias)
            top = float(best.max())
        if top > mark * (1 + settings.candidate_improvement):
            mark, waited = top, 0
        else:
            waited += 1
            if waited >= settings.candidate_patience:
                break
        optimizer.zero_grad()
        (-found.sum() / scale).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    winner = int(best.argmax())
    return Candidate(best_weight[winner], best_bias[winner], float(best[winner]))


def _draw(candidates: int, features: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Weights (candidates, features) and biases (candidates,), to be trained.

    Uniform with the width at which standardised inputs give a weighted sum of variance 1: for two inputs it
    is the +-1 of the authors' program, and with hundreds a unit does not begin saturated.
    """
    fan_in = features.shape[1] + 1
    values = torch.rand(candidates, fan_in, generator=generator, dtype=torch.float64)
    values = ((2 * values - 1) * math.sqrt(3 / fan_in)).to(features)
    return values[:, :-1].clone().requires_grad_(), values[:, -1].clone().requires_grad_()


@torch.no_grad()
def train_outputs(
    network: CascadeNetwork, features: Tensor, targets: Tensor, settings: CascadeSettings
) -> float:
    """Train `network.output` in place; it ends with the best values met, never worse than it began.

    Args:
        network: of which nothing else changes.
        features: (N, inputs + units), what the outputs read.
        targets: (N, outputs), real values or one-hot classes.

    Returns:
        The training error; not finite only if it was not at the beginning.
    """
    loss = LOSSES[settings.loss]
    start = float(loss(network.output(features), targets))
    if not math.isfinite(start) or start <= 0:
        return start + 0.0  # cross-entropy can be -0.0
    # L-BFGS has absolute limits, while the scale of real targets is the user's. So a squared error is trained
    # in a unit near its root; as a power of two, it changes no digit on the way there and back.
    unit = 2.0 ** round(math.log2(start) / 2) if settings.loss == "squared_error" else 1.0
    parameters = list(network.output.parameters())
    for parameter in parameters:
        parameter.div_(unit)
    best = _minimise(network, features, targets / unit, settings, start / unit**2)
    for parameter in parameters:
        parameter.mul_(unit)
        parameter.grad = None
    return best * unit**2 + 0.0


def _minimise(
    network: CascadeNetwork, features: Tensor, targets: Tensor, settings: CascadeSettings, best: float
) -> float:
    """The smallest error met, from `best` on; the outputs end there."""
    loss = LOSSES[settings.loss]
    parameters = list(network.output.parameters())
    optimizer = LBFGS(
        parameters,
        max_eval=50 * settings.output_patience,
        tolerance_grad=0,
        tolerance_change=0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        found = loss(network.output(features), targets)
        found.backward()  # type: ignore[no-untyped-call]
        return found

    for done in range(0, settings.output_epochs, settings.output_patience):
        before, kept = best, [parameter.detach().clone() for parameter in parameters]
        optimizer.param_groups[0]["max_iter"] = min(settings.output_patience, settings.output_epochs - done)
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        now = float(loss(network.output(features), targets))
        if not now < before:  # rounding at the minimum; also where a step left the finite numbers
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)
            return before
        best = now
        if before - now <= settings.output_improvement * before:
            break
    return best
