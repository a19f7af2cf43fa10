"""Statistics with one number per weight: mean gradients, and correlations of a connection's two ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Batch, without_padding
from prunekit.distributed import count_processes, means_over_processes, on_processes, sum_over_processes
from prunekit.errors import DataError
from prunekit.graph.rows import CONVOLUTIONS, from_rows, output_rows, row_layers, rows_of, windows
from prunekit.statistics.collect import (
    Collector,
    StatContext,
    Statistic,
    layer_label,
    never_ran,
    watched_calls,
)
from prunekit.statistics.moments import CrossMoments
from prunekit.targets import device_of

SUMS_BYTES = 512 * 2**20
"""Memory for the sums of one pass: a convolution has as many as it has connections, not weights."""

_COPY_BYTES = 8 * 2**20
"""Memory for what convolutions are given, laid out for products of matrices."""


@dataclass(frozen=True)
class ConnectionCorrelation(Statistic):
    """By weight, in its shape, float64: the Pearson correlation over examples of a connection's two ends.

    The lower end is what the layer is given, the upper one its neuron's activation, batch norm and activation
    function included where they follow directly (see `activations`). A convolution's weight serves a
    connection at every position: its value is the mean of |r| over those where it reads a neuron, and no
    padding of zeros. A weight of one connection has a value with a sign: that of a linear layer, further
    dimensions of whose inputs count as examples, and that of a convolution over a single position, whose
    groups make a locally connected layer. What is constant has a correlation of 0.

    The sums of a convolution are one for each connection, kept by position. Where they need more memory than
    there is for them, the network runs several times, each time for some of the positions.

    Attributes:
        budget_bytes: memory for the sums of one pass.
    """

    budget_bytes: int = SUMS_BYTES

    needs_loss = False

    def start(self, subject: StatContext) -> Collector:
        """A collector that keeps the examples' inputs.

        Raises:
            ModelError: naming a parameter whose layer has no rows of inputs.
        """
        return _Correlations(subject, self.budget_bytes)


class _Correlations(Collector):
    def __init__(self, subject: StatContext, budget: int) -> None:
        self._model = subject.model
        self._modules = row_layers(subject.model, subject.names)
        self._layers: dict[str, _Layer] = {}
        self._batches: list[Batch] = []
        self._task = subject.task
        self._budget = budget

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        if not self._batches:
            after = graph.activations(self._model, self._modules, batch.inputs)
            self._layers = {name: _Layer(layer, after[name]) for name, layer in self._modules.items()}
        self._batches.append(batch)

    @torch.no_grad()
    def finish(self) -> dict[str, Tensor]:
        first = True
        while not all(layer.done for layer in self._layers.values()):
            budget = _Budget(self._budget)
            left = {name: self._modules[name] for name, layer in self._layers.items() if not layer.done}
            for batch in self._batches:
                real = self._task.real_positions(batch, self._model)
                with watched_calls(left, partial(self._see, budget, real)):
                    self._task.run(self._model, batch)
            if first:
                self._check()
            first = False
            for name, layer in self._layers.items():
                layer.close(layer_label(name))
        return {name: layer.result() for name, layer in self._layers.items()}

    def _see(self, budget: _Budget, real: Tensor | None, name: str, x: Tensor, output: Tensor) -> None:
        self._layers[name].take(without_padding(x, real), without_padding(output, real), budget)

    def _check(self) -> None:
        """All processes find the same: one that stopped alone would leave the others waiting."""
        device = device_of(self._model)
        facts = torch.tensor([layer.facts for layer in self._layers.values()], dtype=torch.float64)
        facts = facts.to(device)
        sum_over_processes([facts])
        processes = count_processes(True, device)[1]
        for name, (ran, several, places, squares) in zip(self._layers, facts.tolist(), strict=True):
            if ran < processes:
                where = on_processes(processes - int(ran), processes)
                raise never_ran(name, self._modules[name], "connections", where)
            if several or squares * processes != places**2:
                raise DataError(
                    f"the layer {layer_label(name)!r} reads inputs of several sizes, whose positions cannot "
                    "be compared: give calibration data of one size, or name the layer in `ignore`"
                )


class _Budget:
    """Memory that the layers of a pass share; the first of them always gets something."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._untouched = True

    def lines(self, wanted: int, each: int) -> int:
        """How many lines of positions may be looked at, of so many bytes each."""
        granted = min(wanted, max(self._left // each, int(self._untouched)))
        self._left -= granted * each
        self._untouched = False
        return granted


class _Layer:
    """One layer's connections: the lines of positions that are under way, and what is known of those before.

    A line is a row of an image's positions; a linear layer has one line of one position.
    """

    def __init__(self, layer: nn.Module, after: graph.Function) -> None:
        weight = cast(Tensor, layer.weight)
        self._layer = layer
        self._after = after
        groups, rows, columns = rows_of(weight, layer).shape
        self._sums = torch.zeros(groups, rows, columns, dtype=torch.float64, device=weight.device)
        self._served = torch.ones(groups, 1, columns, dtype=torch.float64, device=weight.device)
        self._places: tuple[int, ...] = ()
        self._several = False
        self._next = 0
        self._under_way: list[tuple[slice, CrossMoments]] = []

    @property
    def done(self) -> bool:
        """Whether all positions have been looked at."""
        return bool(self._places) and self._next == self._places[0]

    @property
    def facts(self) -> tuple[float, float, float, float]:
        """Whether it ran, and on inputs of several sizes; how many positions it has, and their square."""
        places = float(prod(self._places)) if self._places else 0.0
        return float(bool(self._places)), float(self._several), places, places**2

    def take(self, x: Tensor, output: Tensor, budget: _Budget) -> None:
        """The inputs and outputs of one call."""
        lower, upper = _lower(self._layer, x), _upper(self._layer, self._after(output))
        places = tuple(upper.shape[1:-2])
        if not self._places:
            self._places = places
            if isinstance(self._layer, CONVOLUTIONS):  # ones, but where the padding is zeros
                one = _lower(self._layer, torch.ones_like(x)).narrow(1 + len(places), 0, 1)
                inside = _blocks(one, len(places))
                self._served = inside.view(len(self._sums), -1, inside.shape[2]).sum(1, True).double()
        if places != self._places:
            self._several = True
            return
        if not self._under_way:
            self._begin(lower, budget)
        for lines, moments in self._under_way:
            moments.add(_blocks(lower[:, lines], len(places)), _blocks(upper[:, lines], len(places)))

    def _begin(self, lower: Tensor, budget: _Budget) -> None:
        """Take up as many of the lines that are left as the memory allows."""
        groups, rows, columns = self._sums.shape
        wide = groups * prod(self._places[1:])
        left = self._places[0] - self._next
        last = self._next + budget.lines(left, wide * rows * columns * self._sums.element_size())
        copied = wide * lower.shape[1 + len(self._places)] * columns * lower.element_size()
        at_once = max(1, _COPY_BYTES // max(1, copied))
        for first in range(self._next, last, at_once):
            lines = slice(first, min(first + at_once, last))
            blocks = wide * (lines.stop - lines.start)
            self._under_way.append((lines, CrossMoments(blocks, columns, rows, device=self._sums.device)))

    def close(self, label: str) -> None:
        """Be through with the lines that are under way, reduced over all processes."""
        for lines, moments in self._under_way:
            moments.reduce()
            for which, finite in zip(("inputs", "activations"), moments.finite, strict=True):
                if not finite:
                    raise DataError(
                        f"the {which} of the layer {label!r} are not finite on the calibration data, or too "
                        "large to be squared"
                    )
            if moments.x.count < 2:
                raise DataError(
                    f"the layer {label!r} saw one example only on the calibration data: a correlation needs "
                    "two at least"
                )
            found = moments.correlations
            if prod(self._places) > 1:
                found = found.abs()
            self._sums += found.view(len(self._sums), -1, *found.shape[1:]).sum(1)
            self._next = lines.stop
        self._under_way = []

    def result(self) -> Tensor:
        """The values in the shape of the weight."""
        return from_rows(self._sums / self._served.clamp(min=1), self._layer)


def _lower(layer: nn.Module, x: Tensor) -> Tensor:
    """(groups, lines, positions..., n, channels, kernel...): what each output is computed from."""
    if not isinstance(layer, CONVOLUTIONS):
        return x.reshape(1, 1, -1, x.shape[-1])
    return windows(layer, x).movedim(1, 1 + len(layer.kernel_size))


def _upper(layer: nn.Module, outputs: Tensor) -> Tensor:
    """(groups, lines, positions..., n, rows): what each row of weights makes."""
    rows = output_rows(layer, outputs)
    return rows.movedim(1, -2) if isinstance(layer, CONVOLUTIONS) else rows.unsqueeze(1)


def _blocks(numbers: Tensor, dims: int) -> Tensor:
    """(groups x positions, n, columns) of (groups, positions..., n, columns...)."""
    return numbers.reshape(prod(numbers.shape[: 1 + dims]), numbers.shape[1 + dims], -1)


@dataclass(frozen=True)
class MeanGradient(Statistic):
    """dL/dw of the mean loss L over all that it counts, one tensor of the weight's shape per parameter."""

    additive = True

    def start(self, subject: StatContext) -> Collector:
        """A collector that sums gradients; `.grad` of the parameters is not touched."""
        return _GradientSum({name: subject.model.get_parameter(name) for name in subject.names})


class _GradientSum(Collector):
    def __init__(self, weights: dict[str, nn.Parameter]) -> None:
        self._weights = weights
        # sums over many examples leave the range of half precision
        self._sums = {
            name: torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            for name, weight in weights.items()
        }
        self._terms = 0.0

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        gradients = torch.autograd.grad(
            loss, list(self._weights.values()), retain_graph=True, materialize_grads=True
        )
        for total, gradient in zip(self._sums.values(), gradients, strict=True):
            total.add_(gradient, alpha=terms)
        self._terms += terms

    def finish(self) -> dict[str, Tensor]:
        return means_over_processes(self._sums, self._terms)
