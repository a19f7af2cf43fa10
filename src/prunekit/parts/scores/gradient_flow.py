"""Scores for networks before training: what a removal does to the flow of gradients, or of signals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunekit.batches import Batch, arguments
from prunekit.distributed import means_over_processes
from prunekit.errors import DataError, InputError, ModelError, PrunekitError, said
from prunekit.parts.base import LEVELS
from prunekit.parts.context import Score, Scores, StepContext
from prunekit.settings import LARGE
from prunekit.statistics import Collector, StatContext, Statistic

ROUNDING = 1e-9
"""By how much of the largest derivative a sum over all paths, in float64, may be below zero."""


class GraSP(Score):
    """w (H g): what is lost of the squared norm of the gradient, to first order, when the weight is removed.

    g is the gradient of the mean loss by all weights that may be pruned, H its Hessian by them. The gradient
    flow g'g changes by -2 w (H g) where the weight is set to zero: weights whose removal raises it go first.
    Signs count. Meant for one step before training.

    Attributes:
        temperature: what the outputs are divided by, as in the authors' code.
    """

    name = "grasp"
    paper = "Wang, Zhang, Grosse 2020, arXiv 2002.07376"
    comparable = tuple(LEVELS)
    temperature: float = Field(default=200.0, gt=0, le=LARGE)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """H g."""
        return (HessianGradient(self.temperature),)

    def __call__(self, context: StepContext) -> Scores:
        """The products, in float64."""
        found = context.statistics[HessianGradient(self.temperature)]
        return {name: weight.double() * found[name].double() for name, weight in context.weights.items()}


class SynFlow(Score):
    """|w dR/dw|: the part of the network's synaptic flow R that goes through the weight.

    R is the sum of the outputs when every input is ones, and all weights, biases and statistics of norms have
    their absolute values: for ReLU networks, the sum over all paths of the product of their weights. What is
    removed is always the least of what is left, so many small steps never cut a layer through. It looks at
    no example; of the data it takes the shape. Meant for networks before training.

    A network where the flow falls as a weight grows is refused: behind norms that take the mean and deviation
    of what comes in (`LayerNorm`, `GroupNorm`) and in attention, R is no sum over paths.
    """

    name = "synflow"
    paper = "Tanaka, Kunin, Yamins, Ganguli 2020, arXiv 2006.05467"
    comparable = tuple(LEVELS)

    @property
    def needs(self) -> tuple[Statistic, ...]:  # type: ignore[override]
        """dR/dw."""
        return (SynapticFlow(),)

    def __call__(self, context: StepContext) -> Scores:
        """The products, in float64."""
        found = context.statistics[SynapticFlow()]
        return {name: weight.double().abs() * found[name] for name, weight in context.weights.items()}


class _FlowStatistic(Statistic):
    """A derivative that the collector takes by itself, when it has seen the data."""

    needs_loss = False


@dataclass(frozen=True)
class HessianGradient(_FlowStatistic):
    """By weight: H g for the mean loss over all examples, with g and H by the weights of interest alone.

    Attributes:
        temperature: what the outputs are divided by.
    """

    temperature: float = 1.0

    takes_loss = True
    additive = True

    def start(self, subject: StatContext) -> Collector:
        """A collector that keeps the batches and differentiates twice at the end."""
        return _HessianGradient(subject, self.temperature)


class _Flow(Collector):
    """Differentiates by copies of the weights of interest, so that frozen ones count as well.

    Attributes:
        precision: at least that in which the network is run.
    """

    precision: ClassVar[torch.dtype]

    def __init__(self, subject: StatContext) -> None:
        self._subject = subject
        self._values = {
            name: value.to(torch.promote_types(value.dtype, self.precision))
            for name, value in _state(subject.model).items()
        }

    def finish(self) -> dict[str, Tensor]:
        # the fused kernels of attention cannot be differentiated twice
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            found = self._derivatives()
        for name, each in found.items():
            if not bool(each.isfinite().all()):
                raise DataError(f"{self._what} by {name!r} is not finite on the calibration data")
        return found

    _what: str

    def _precise(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(torch.promote_types(tensor.dtype, self.precision))

    def _outputs(self, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """The network's, with these values in place of its own.

        Raises:
            ModelError: if it cannot be run in this precision, with what it says.
            InputError: if it has several.
        """
        args, kwargs = arguments(batch.map(self._precise).inputs)
        try:
            outputs = functional_call(self._subject.model, {**self._values, **values}, args, kwargs)
        except PrunekitError:
            raise
        except Exception as error:  # the model may be the user's
            raise ModelError(
                f"{self._what} cannot be taken: in {self.precision} the network fails with {said(error)}"
            ) from error
        return self._subject.task.tensor(outputs, self._what)

    @abstractmethod
    def _derivatives(self) -> dict[str, Tensor]: ...


class _HessianGradient(_Flow):
    precision = torch.float32  # the temperature takes its square from derivatives: out of half's range

    def __init__(self, subject: StatContext, temperature: float) -> None:
        super().__init__(subject)
        self._temperature = temperature
        self._what = f"the product of Hessian and gradient at temperature {temperature:g}"
        self._batches: list[Batch] = []

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        if batch.fed and not self._batches:
            with torch.no_grad():
                self._subject.task.logits(self._subject.model, batch, self._what)
        self._batches.append(batch)

    def _derivatives(self) -> dict[str, Tensor]:
        gradient = self._mean_derivative(None)
        return self._mean_derivative(gradient)

    def _mean_derivative(self, along: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Over all examples, of the loss, or of the product of its gradient with a direction."""
        leaves = {name: self._values[name].detach().requires_grad_() for name in self._subject.names}
        sums = {name: torch.zeros_like(weight) for name, weight in leaves.items()}
        counted = 0.0
        weights = list(leaves.values())
        for batch in self._batches:
            value, terms = self._loss(leaves, batch)
            if not terms:
                continue
            if along is not None and value.requires_grad:
                gradients = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
                products = zip(gradients, along.values(), strict=True)
                value = torch.stack([(each * other).sum() for each, other in products]).sum()
            counted += terms
            if not value.requires_grad:  # a gradient that is the same everywhere, or none
                continue
            found = torch.autograd.grad(value, weights, materialize_grads=True)
            for total, each in zip(sums.values(), found, strict=True):
                total.add_(each, alpha=terms)
        return means_over_processes(sums, counted)

    def _loss(self, weights: Mapping[str, Tensor], batch: Batch) -> tuple[Tensor, float]:
        """The mean loss of a batch, and how many terms it is the mean of."""
        task = self._subject.task
        outputs, targets = self._outputs(weights, batch), batch.map(self._precise).targets
        return task.loss(outputs / self._temperature, targets), task.terms(outputs, targets)


@dataclass(frozen=True)
class SynapticFlow(_FlowStatistic):
    """By weight: the derivative of the synaptic flow by its absolute value, in float64; see `SynFlow`."""

    def start(self, subject: StatContext) -> Collector:
        """A collector that keeps the shape of an example."""
        return _SynapticFlow(subject)


class _SynapticFlow(_Flow):
    _what = "the derivative of the synaptic flow"
    precision = torch.float64  # sums over all paths leave the range of single precision
    _ones: Batch | None = None

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        if self._ones is None:
            self._ones = Batch(batch.inputs, None).examples(0, 1).map(_ones_like)

    def _derivatives(self) -> dict[str, Tensor]:
        assert self._ones is not None
        absolute = {name: value.abs() for name, value in self._values.items()}
        weights = {name: absolute[name].detach().requires_grad_() for name in self._subject.names}
        flow = self._outputs({**absolute, **weights}, self._ones).sum()
        if not flow.requires_grad:  # none of these weights is on a path that is differentiated
            return {name: torch.zeros_like(weight) for name, weight in weights.items()}
        found = torch.autograd.grad(flow, list(weights.values()), materialize_grads=True)
        most = max(float(each.abs().max()) for each in found if each.numel())
        for name, each in zip(weights, found, strict=True):
            if each.numel() and float(each.min()) < -ROUNDING * most:
                raise InputError(
                    f"the synaptic flow falls where {name!r} grows, so that it is no sum over paths: the "
                    "network normalises what flows (LayerNorm, GroupNorm, softmax) or subtracts: use another "
                    "score"
                )
        return dict(zip(weights, found, strict=True))


def _ones_like(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise InputError(
            "the synaptic flow is that of inputs of ones; the network reads whole numbers or flags, such as "
            "the indices of an embedding or a mask: use another score"
        )
    return torch.ones_like(tensor)


def _state(model: nn.Module) -> dict[str, Tensor]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {name: value.detach() for name, value in tensors.items() if value.is_floating_point()}
