"""The Gauss-Newton Hessian of the loss by the weights, whole or its diagonal; the diagonal by recursion."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils import _pytree as pytree

from prunekit import graph
from prunekit.batches import Batch, Inputs, arguments
from prunekit.distributed import means_over_processes
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph.rows import LAYERS, from_rows, output_rows, patches, row_layers, rows_of
from prunekit.losses import one_tensor
from prunekit.statistics.collect import Collector, StatContext, Statistic, never_ran, watched_calls
from prunekit.statistics.moments import add_product, mirrored
from prunekit.task import LossFunction

LIMIT = 5000
"""The most weights that a whole Hessian is built for: 200 MB."""

MOST_OUTPUTS = 1000
"""The most outputs of an example: each is a pass back through the network."""

_EXAMPLES = 32
"""Examples whose derivatives are held at once."""

_BUDGET_BYTES = 64 * 2**20


class CurvatureStatistic(Statistic):
    """Made of J' L J: J the outputs' derivatives by the weights, L the loss's second ones by the outputs.

    The loss must be a mean over examples. Outputs count all their numbers: positions, too.
    """

    needs_loss = False
    takes_loss = True
    additive = True


@dataclass(frozen=True)
class GaussNewtonDiagonal(CurvatureStatistic):
    """By weight: the diagonal of the loss's Gauss-Newton Hessian, float64, in the weight's shape."""

    def start(self, subject: StatContext) -> Collector:
        """A collector for the layers of the subject's parameters.

        Raises:
            ModelError: naming a weight that is not a linear or convolution layer's alone.
        """
        return _Diagonal(subject)


@dataclass(frozen=True)
class RecursiveDiagonal(CurvatureStatistic):
    """By weight: the diagonal of the loss's Hessian by the recursion of LeCun, Denker, Solla (NIPS 2, 1990).

    In float64, in the weight's shape. With a_i a layer's outputs before the activation f and x_j its inputs,
    h_ij is the mean over examples of the sum over positions of x_j^2 d2E/da_i^2, and for the layer below
    d2E/da_j^2 = f'(a_j)^2 sum_i w_ij^2 d2E/da_i^2, from the diagonal of the loss's Hessian by the outputs on.
    Pools count as layers of fixed weights. The term f''(a_j) dE/dx_j is left out (the paper's
    Levenberg-Marquardt form), so that nothing is negative. Second derivatives by two units of a layer, or by
    one at two positions, are left out as well.
    """

    def start(self, subject: StatContext) -> Collector:
        """A collector for the layers of the subject's parameters.

        Raises:
            ModelError: naming a weight that is not a linear or convolution layer's alone.
        """
        return _Recursion(subject)


@dataclass(frozen=True)
class GaussNewton(CurvatureStatistic):
    """The Gauss-Newton Hessian of all pruned weights together, and of the biases of their layers.

    Found as rows: by weight or bias (its size, all sizes) float64; below each other, in their order, they
    are the matrix.
    """

    def start(self, subject: StatContext) -> Collector:
        """A collector for the subject's parameters.

        Raises:
            InputError: if there are more than 5,000 weights.
        """
        check_size(subject.model, subject.names)
        return _Whole(subject)


def check_size(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse a whole Hessian of too many weights, with an `InputError`."""
    weights = sum(model.get_parameter(name).numel() for name in names)
    if weights > LIMIT:
        raise InputError(
            f"the network has {weights:,} weights to choose from, the Hessian of a whole network is built "
            f"for at most {LIMIT:,}: use 'layer_obs' or 'obd', or name layers in `ignore`"
        )


def output_roots(loss: LossFunction, outputs: Tensor, targets: Any, terms: float) -> Tensor:
    """(n, K, K) float64: R with R R' the second derivative of each example's loss by its K outputs.

    Directions in which the loss is not convex count as flat.

    Args:
        loss: (outputs, targets) -> a scalar.
        outputs: (n, ...) with K numbers for an example.
        targets: of the batch.
        terms: how many the loss is the mean of.
    """
    flat = outputs.detach().double().reshape(len(outputs), -1).requires_grad_()
    with torch.enable_grad():
        value = loss(flat.view(outputs.shape), _as_double(targets)) * terms
        (first,) = torch.autograd.grad(value, flat, create_graph=True)
        rows = []
        for column in first.unbind(1):
            if not column.requires_grad:
                rows.append(torch.zeros_like(flat))
                continue
            rows.append(torch.autograd.grad(column.sum(), flat, retain_graph=True, materialize_grads=True)[0])
    second = torch.stack(rows, 1)
    if not bool(second.isfinite().all()):
        raise DataError("the loss has no finite second derivative on the calibration data")
    values, vectors = torch.linalg.eigh((second + second.mT) / 2)
    return vectors * values.clamp(min=0).sqrt().unsqueeze(1)


def _as_double(targets: Any) -> Any:
    return pytree.tree_map_only(
        Tensor, lambda each: each.double() if each.is_floating_point() else each, targets
    )


class _Curvature(Collector):
    """Walks over the examples, a few at a time."""

    def __init__(self, subject: StatContext) -> None:
        self._model = subject.model
        self._layers = row_layers(subject.model, subject.names)
        self._task = subject.task
        self._terms = 0.0
        self._ran: set[str] = set()

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        for part in batch.parts(_EXAMPLES):
            self._take(part)

    def _roots(self, outputs: Tensor, targets: Any) -> Tensor:
        if outputs[0].numel() > MOST_OUTPUTS:
            raise InputError(
                f"the network has {outputs[0].numel():,} outputs for an example; curvature takes a pass back "
                f"for each of them, at most {MOST_OUTPUTS:,}"
            )
        terms = self._task.terms(outputs, targets)
        self._terms += terms
        return output_roots(self._task.loss, outputs, targets, terms)

    def _watched(self, batch: Batch) -> Tensor:
        """The network's outputs; its layers report their calls."""
        with watched_calls(self._layers, self._on_call):
            return self._task.logits(self._model, batch, "curvature by the outputs")

    def _on_call(self, name: str, x: Tensor, output: Tensor) -> Tensor | None:
        """A layer's input and output; what is returned goes on in its place."""
        self._ran.add(name)
        return None

    def _check_ran(self) -> None:
        for name in self._layers:
            if name not in self._ran and self._terms:
                raise never_ran(name, self._layers[name], "weights")

    @abstractmethod
    def _take(self, batch: Batch) -> None: ...


class _ByWeight(_Curvature):
    """Sums by weight over the examples, as rows."""

    def __init__(self, subject: StatContext) -> None:
        super().__init__(subject)
        self._sums = {
            name: torch.zeros_like(
                rows_of(subject.model.get_parameter(name).detach(), layer), dtype=torch.float64
            )
            for name, layer in self._layers.items()
        }

    def finish(self) -> dict[str, Tensor]:
        found = means_over_processes(self._sums, self._terms)
        self._check_ran()
        for name, value in found.items():
            if not bool(value.isfinite().all()):
                raise DataError(f"the derivatives of the outputs by {name} are not finite")
        return {name: from_rows(value, self._layers[name]) for name, value in found.items()}


class _Diagonal(_ByWeight):
    """Squares of each example's derivatives, from the inputs of the layers and what comes back to them."""

    def __init__(self, subject: StatContext) -> None:
        super().__init__(subject)
        self._calls: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def _take(self, batch: Batch) -> None:
        self._calls = {}
        with torch.enable_grad():
            outputs = self._watched(batch)
        roots = self._roots(outputs, batch.targets).to(outputs.dtype)
        seen = [
            (name, self._by_example(patches(self._layers[name], x), len(batch)), output)
            for name, calls in self._calls.items()
            for x, output in calls
        ]
        flat = outputs.reshape(len(outputs), -1)
        for direction in range(roots.shape[2]):
            back = torch.autograd.grad(
                flat,
                [output for *_, output in seen],
                roots[:, :, direction],
                retain_graph=True,
                materialize_grads=True,
            )
            self._add(seen, back, len(batch))

    def _on_call(self, name: str, x: Tensor, output: Tensor) -> Tensor:
        self._ran.add(name)
        output = output if output.requires_grad else output.requires_grad_()
        self._calls.setdefault(name, []).append((x.detach(), output))
        return output.clone()  # what follows may change it in place

    def _by_example(self, rows: Tensor, examples: int) -> Tensor:
        """(groups, rows, columns) as (groups, examples, positions, columns)."""
        return torch.unflatten(rows, 1, (examples, -1))

    def _add(self, seen: Sequence[tuple[str, Tensor, Tensor]], back: Sequence[Tensor], examples: int) -> None:
        for name, layer in self._layers.items():
            calls = [
                (x, self._by_example(output_rows(layer, each).flatten(1, -2), examples))
                for (owner, x, _), each in zip(seen, back, strict=True)
                if owner == name
            ]
            if not calls:
                continue
            x, slopes = (torch.cat(parts, 2) for parts in zip(*calls, strict=True))
            self._sums[name] += squared_derivatives(x, slopes)


def squared_derivatives(x: Tensor, slopes: Tensor) -> Tensor:
    """(groups, outputs, columns) float64: the sum over examples of (sum over positions of slope x)^2.

    Args:
        x: (groups, examples, positions, columns) inputs of a layer.
        slopes: (groups, examples, positions, outputs) derivatives by its outputs.
    """
    if x.shape[2] == 1:  # a product of squares: no example needs a matrix of its own
        return (slopes[:, :, 0].square().mT @ x[:, :, 0].square()).double()
    each = x.shape[0] * x.shape[3] * slopes.shape[3] * x.element_size()
    size = max(1, _BUDGET_BYTES // each)
    total = torch.zeros(x.shape[0], slopes.shape[3], x.shape[3], dtype=torch.float64, device=x.device)
    for some, more in zip(torch.split(x, size, 1), torch.split(slopes, size, 1), strict=True):
        total += (more.mT @ some).square().sum(1)
    return total


class _Recursion(_ByWeight):
    """Runs a chain operation by operation, and hands the diagonal back through them."""

    def __init__(self, subject: StatContext) -> None:
        super().__init__(subject)
        self._names = {layer: name for name, layer in self._layers.items()}
        self._stages: tuple[graph.Stage, ...] = ()

    @torch.no_grad()
    def _take(self, batch: Batch) -> None:
        self._stages = self._stages or _stages_of(self._model, batch.examples(0, 2).inputs)
        first = next(place for place, stage in enumerate(self._stages) if stage.kind is graph.Kind.LAYER)
        given, x = [], one_tensor(batch.inputs, "the published recursion of curvature")
        for stage in self._stages:
            given.append(x)
            x = stage.run(x)
        curved = self._roots(x, batch.targets).square().sum(2).view_as(x).to(x.dtype)
        for place in range(len(given) - 1, first - 1, -1):
            stage, x = self._stages[place], given[place]
            if stage.module in self._names:
                self._add(self._names[stage.module], x, curved)
            if place > first:
                curved = _handed_back(stage, x, curved)

    def _add(self, name: str, x: Tensor, curved: Tensor) -> None:
        layer = self._layers[name]
        self._ran.add(name)
        by_row = output_rows(layer, curved).flatten(1, -2)
        self._sums[name] += (by_row.mT @ patches(layer, x).square()).double()


def _stages_of(model: nn.Module, inputs: Inputs) -> tuple[graph.Stage, ...]:
    """The operations of a network that is a chain.

    Raises:
        InputError: for a network that is none, or whose outputs are mixed behind its last layer.
    """
    refused = "the published recursion of curvature goes back along a chain of layers: {}; use form='exact'"
    try:
        stages = graph.chain_of(model, inputs).stages
    except ModelError as error:
        raise InputError(refused.format(error)) from error
    for stage in reversed(stages):
        if stage.kind is graph.Kind.LAYER:
            break
        if stage.kind is graph.Kind.SIDE:
            raise InputError(refused.format(f"{stage.name!r} behind the last layer {stage.note}"))
    return stages


def _handed_back(stage: graph.Stage, x: Tensor, curved: Tensor) -> Tensor:
    """The diagonal by what an operation is given, from that by what it gives: with squared derivatives."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        if isinstance(stage.module, LAYERS):
            found = functional_call(stage.module, {"weight": stage.module.weight.square()}, (x,))
        else:
            found = stage.run(x)
    if stage.kind in (graph.Kind.POINTWISE, graph.Kind.NORM):
        (slope,) = torch.autograd.grad(found, x, torch.ones_like(found))
        return curved * slope.square()
    if stage.kind is graph.Kind.POOL:
        curved = curved * _shares(stage.run, x)
    (back,) = torch.autograd.grad(found, x, curved)
    return back


def _shares(pool: graph.Function, x: Tensor) -> Tensor:
    """What one of the numbers that a mean pool joins counts for, by its outputs; 1 for maxima.

    A mean is told from a maximum by its sign. The numbers that it joins are a box of n along each axis:
    their coordinates have the variance (n^2 - 1) / 12, and their shares add up to what it makes of ones.
    """
    ones = torch.ones_like(x[:1], dtype=torch.float64)
    ramp = torch.arange(ones.numel(), dtype=torch.float64, device=x.device).view_as(ones)
    if not torch.equal(pool(-ramp), -pool(ramp)):
        return torch.ones((), dtype=x.dtype, device=x.device)
    share = total = pool(ones)
    for axis in range(1, x.dim()):
        shape = [-1 if each == axis else 1 for each in range(x.dim())]
        at = torch.arange(x.shape[axis], dtype=torch.float64, device=x.device).view(shape) * ones
        at = at - (x.shape[axis] - 1) / 2
        variance = pool(at.square()) / total - (pool(at) / total).square()
        share = share / (1 + 12 * variance).sqrt().round()
    return share.to(x.dtype)


class _Whole(_Curvature):
    """Products of each example's derivatives by all weights and biases."""

    def __init__(self, subject: StatContext) -> None:
        super().__init__(subject)
        names = []
        for name, layer in self._layers.items():
            names.append(name)
            if getattr(layer, "bias", None) is not None:
                names.append(name.removesuffix("weight") + "bias")
        self._parameters = {name: subject.model.get_parameter(name).detach() for name in names}
        size = sum(parameter.numel() for parameter in self._parameters.values())
        device = next(iter(self._parameters.values())).device
        self._sum = torch.zeros(1, size, size, dtype=torch.float64, device=device)

    def _take(self, batch: Batch) -> None:
        with torch.no_grad():
            roots = self._roots(self._watched(batch), batch.targets)

        def outputs_of(parameters: dict[str, Tensor], example: Any) -> Tensor:
            args, kwargs = arguments(pytree.tree_map_only(Tensor, lambda x: x.unsqueeze(0), example))
            found = functional_call(self._model, parameters, args, kwargs)
            return self._task.tensor(found, "curvature by the outputs").flatten()

        found = vmap(jacrev(outputs_of), (None, 0))(self._parameters, batch.inputs)
        jacobian = torch.cat([found[name].flatten(2) for name in self._parameters], 2).detach().double()
        add_product(self._sum, (roots.mT @ jacobian).flatten(0, 1).unsqueeze(0))

    def finish(self) -> dict[str, Tensor]:
        matrix = mirrored(means_over_processes({"": self._sum}, self._terms)[""])[0]
        self._check_ran()
        if not bool(matrix.isfinite().all()):
            raise DataError("the derivatives of the outputs by the weights are not finite")
        sizes = [parameter.numel() for parameter in self._parameters.values()]
        return dict(zip(self._parameters, torch.split(matrix, sizes), strict=True))
