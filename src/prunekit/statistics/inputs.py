"""Moments of what layers are given, and which unit each of their inputs belongs to."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Batch, without_padding
from prunekit.distributed import rank
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph.rows import TRANSPOSED, channels, groups_of, inputs_first, patches, row_layers, rows_of
from prunekit.statistics.collect import (
    Collector,
    StatContext,
    Statistic,
    layer_label,
    never_ran,
    watched_calls,
)
from prunekit.statistics.moments import Moments

_BUFFER_BYTES = 8 * 2**20
"""Memory for a layer's rows that are collected before their products are taken: few products of many."""

_ROWS_BYTES = 8 * 2**20
"""Memory for the patches that are laid out at once, which are many times the inputs of a convolution: small
enough to be used again and again, as large pieces of memory are handed back and have to be cleared anew."""


Form = Literal["patches", "channels", "magnitudes", "magnitudes by example"]
"""What counts as a row of inputs: what an output is computed from, or what there is at a position, padding
left out, or the magnitudes of that, or their means over the positions of an example."""

MEANS, SQUARES, PAIRS = 1, 2, 3
"""What is summed up of these rows: means alone, squares about them as well, or the products of all pairs."""


@dataclass(frozen=True)
class InputStatistic(Statistic):
    """Something of the inputs of layers.

    All such requests of a pass that look at the same rows of the same layers share one set of sums. Half
    precision is taken in float32. A layer that is called several times is given the rows of all calls.

    Attributes:
        consumers: whether the layers are those that read the units of a recipe, and not those whose weights
            are pruned. All is then taken in float64: what is fitted to it may have no spare digits.
        form: what counts as a row of inputs.
        sums: what is summed up of them.
    """

    consumers: bool = field(default=False, kw_only=True)
    form: ClassVar[Form] = "patches"
    sums: ClassVar[int] = MEANS

    needs_loss = False
    needs_forward = True
    additive = True

    def about_means(self, layer: nn.Module) -> bool:
        """Whether it is taken about the means of the layer's inputs, of which one row says nothing."""
        return False

    def of(self, moments: Moments, layer: nn.Module) -> Tensor:
        """The values of one layer, by default the means."""
        return moments.mean

    @property
    def rows(self) -> object:
        """What is counted as a row, and of which layers."""
        return InputStatistic, self.form, self.consumers

    def held_bytes(self, columns: int, rows: int, calls: int) -> int:
        """Rows in front of the sums, and products of pairs."""
        if self.sums == MEANS:
            return 0
        capacity = _capacity(columns, self._item)
        buffer = self._item * columns * min(capacity, rows * calls) if rows < capacity else 0
        return buffer + (8 * columns**2 if self.sums == PAIRS else 0)

    def taking_bytes(self, columns: int, rows: int, calls: int) -> int:
        """Deviations from the mean, and their squares, or the products of half of the pairs."""
        if self.sums == MEANS:
            return 0
        capacity = _capacity(columns, self._item)
        deviations = self._item * columns * (min(capacity, rows * calls) if rows < capacity else rows)
        return deviations + (self._item * columns**2 // 4 if self.sums == PAIRS else deviations)

    @property
    def _item(self) -> int:
        """Bytes of a number in the precision that rows are taken in."""
        return 8 if self.consumers else 4

    def start(self, subject: StatContext) -> Collector:
        """A collector for the layers of the subject's parameters.

        Raises:
            InputError: for the layers that read units, where no units are counted.
            ModelError: naming a parameter whose layer has no rows of inputs.
        """
        first = self.rows not in subject.shared
        if first:
            subject.shared[self.rows] = _Sums(self._layers(subject), self.form, subject, exact=self.consumers)
        sums: _Sums = subject.shared[self.rows]
        sums.wanted = max(sums.wanted, self.sums)
        return _Reader(self, sums, first=first)

    def _layers(self, subject: StatContext) -> dict[str, nn.Module]:
        if not self.consumers:
            return row_layers(subject.model, subject.names)
        found = consumers(subject.coupled, subject.kept)
        return {name: consumer.layer for name, consumer in found.items()}


@dataclass(frozen=True)
class LayerHessian(InputStatistic):
    """By weight: (groups, columns, columns) float64, the mean over rows of x x^T, x the layer's inputs.

    It is the Hessian of half the layer's mean squared output error, the same for all rows of weights.

    Attributes:
        centred: whether the inputs are taken about their means. None is for layers with a bias: a bias that
            is fitted again after a change is the same as a bias column that is never removed.
    """

    sums: ClassVar[int] = PAIRS
    of_pairs = True
    centred: bool | None = None

    def about_means(self, layer: nn.Module) -> bool:
        """As it is asked for, or where there is a bias."""
        return _has_bias(layer) if self.centred is None else self.centred

    def of(self, moments: Moments, layer: nn.Module) -> Tensor:
        """Covariances, or second moments about zero."""
        if self.about_means(layer):
            return moments.covariance
        return moments.covariance.add_(moments.mean.unsqueeze(2) * moments.mean.unsqueeze(1))


@dataclass(frozen=True)
class LayerInputMean(InputStatistic):
    """By weight: (groups, columns) float64, the means of the layer's inputs."""


@dataclass(frozen=True)
class InputSquares(InputStatistic):
    """By weight: (groups, columns) float64, the variances or the mean squares of the layer's inputs.

    Attributes:
        centred: whether they are taken about the means.
    """

    sums: ClassVar[int] = SQUARES
    centred: bool = False

    def about_means(self, layer: nn.Module) -> bool:
        """As it is asked for."""
        return self.centred

    def of(self, moments: Moments, layer: nn.Module) -> Tensor:
        """Variances, or mean squares about zero."""
        return moments.variance if self.centred else moments.variance + moments.mean.square()


@dataclass(frozen=True)
class ChannelMean(InputStatistic):
    """By weight: (1, inputs) float64, the means of a layer's input channels or features."""

    form: ClassVar[Form] = "channels"


@dataclass(frozen=True)
class ChannelCovariance(ChannelMean):
    """By weight: (1, inputs, inputs) float64, their covariances over examples and positions."""

    sums: ClassVar[int] = PAIRS
    of_pairs = True

    def of(self, moments: Moments, layer: nn.Module) -> Tensor:
        """The covariances."""
        return moments.covariance


@dataclass(frozen=True)
class ChannelMagnitude(ChannelMean):
    """By weight: (1, inputs) float64, the mean magnitudes of a layer's input channels or features."""

    form: ClassVar[Form] = "magnitudes"


@dataclass(frozen=True)
class ExampleMagnitude(InputStatistic):
    """By weight: (1, inputs) float64, root mean squares over examples of mean magnitudes over positions."""

    form: ClassVar[Form] = "magnitudes by example"
    sums: ClassVar[int] = SQUARES

    def of(self, moments: Moments, layer: nn.Module) -> Tensor:
        """From squares about the mean."""
        return (moments.variance + moments.mean.square()).sqrt()


def _capacity(columns: int, item: int) -> int:
    """Rows that are collected before their products are taken, of numbers of so many bytes."""
    return max(1, _BUFFER_BYTES // (item * columns))


def _has_bias(layer: nn.Module) -> bool:
    return getattr(layer, "bias", None) is not None


class _Sums:
    """The moments of all layers of a pass, for whoever asks, with what anyone wants of them."""

    def __init__(
        self, layers: dict[str, nn.Module], form: Form, subject: StatContext, *, exact: bool
    ) -> None:
        self.wanted = MEANS
        self._layers, self._form, self._exact = layers, form, exact
        self._model, self._task, self._owners = subject.model, subject.task, subject.owners
        self._watched: dict[str, _Watched] = {}
        self._finished = False

    def watching(self, batch: Batch) -> AbstractContextManager[None]:
        """Hooks on the layers, for as long as the pass lasts that counts."""
        real = self._task.real_positions(batch, self._model)
        return watched_calls(self._layers, partial(self._see, real))

    @torch.no_grad()
    def _see(self, real: Tensor | None, name: str, x: Tensor, output: Tensor) -> None:
        watched, x = self._watch(name), x.detach()
        if real is not None and self._form == "magnitudes by example":  # without padding all would be one
            for one, positions in zip(torch.split(x, 1), torch.split(real, 1), strict=True):
                watched.take(without_padding(one, positions))
            return
        watched.take(without_padding(x, real))

    def _watch(self, name: str) -> _Watched:
        if name not in self._watched:
            self._watched[name] = _Watched(self._layers[name], self._form, self.wanted, exact=self._exact)
        return self._watched[name]

    def finish(self) -> None:
        """Reduce over all processes, then look for what is wrong: all processes find the same."""
        if self._finished:
            return
        self._finished = True
        for name in self._layers:
            self._watch(name).flush()
            self._watch(name).moments.reduce(self._owners.get(name))
        for name in self._layers:
            moments = self._watch(name).moments
            if not moments.count:
                raise never_ran(name, self._layers[name], "inputs")
            if not bool(torch.isfinite(moments.mean).all() & torch.isfinite(moments.variance).all()):
                raise DataError(
                    f"the inputs of the layer {layer_label(name)!r} are not finite on the calibration data, "
                    "or too large to be squared"
                )

    def read(self, statistic: InputStatistic) -> dict[str, Tensor]:
        """One statistic of every layer; products of pairs, of those alone that this process has."""
        for name, layer in self._layers.items():
            if self._watch(name).moments.count < 2 and statistic.about_means(layer):
                raise DataError(
                    f"the layer {layer_label(name)!r} was given one row of inputs only on the calibration "
                    "data, of which there is no variance: give more data"
                )
        return {
            name: statistic.of(self._watch(name).moments, layer)
            for name, layer in self._layers.items()
            if not statistic.of_pairs or self._owners.get(name, rank()) == rank()
        }


class _Watched:
    """One layer's moments, with a buffer in front: products of few rows are slow."""

    def __init__(self, layer: nn.Module, form: Form, wanted: int, *, exact: bool) -> None:
        weight = cast(Tensor, layer.weight)
        groups, _, columns = rows_of(weight, layer).shape
        if form != "patches":
            groups, columns = 1, groups * columns // weight.shape[2:].numel()
        self._layer, self._form = layer, form
        self._smallest = torch.float64 if exact else torch.float32
        self.moments = Moments(groups, columns, pairs=wanted == PAIRS, device=weight.device)
        self._wanted = wanted
        self._buffer: Tensor | None = None
        self._filled = 0

    def take(self, x: Tensor) -> None:
        """The inputs of one call; they are copied, as the network may change them in place."""
        if x.dim() == cast(Tensor, self._layer.weight).dim() - 1:  # one example alone
            x = x.unsqueeze(0)
        if not len(x):
            return
        if self._wanted == MEANS:
            self._join_means(x)
            return
        for rows in self._rows(x.to(torch.promote_types(x.dtype, self._smallest))):
            capacity = _capacity(rows.shape[0] * rows.shape[2], rows.element_size())
            if rows.shape[1] >= capacity:
                self.moments.add(rows)
                continue
            if self._buffer is None or self._buffer.dtype != rows.dtype:
                self.flush()
                self._buffer = rows.new_empty(rows.shape[0], capacity, rows.shape[2])
            if self._filled + rows.shape[1] > self._buffer.shape[1]:
                self.flush()
            self._buffer[:, self._filled : self._filled + rows.shape[1]] = rows
            self._filled += rows.shape[1]

    def _join_means(self, x: Tensor) -> None:
        """Rows are linear in the inputs: those of the mean example are laid out, for all of them."""
        for part in torch.split(x, max(1, _ROWS_BYTES * len(x) // max(1, x.numel() * x.element_size()))):
            size = part.abs() if self._form == "magnitudes" else part
            for rows in self._rows(size.mean(0, keepdim=True, dtype=torch.float64)):
                self.moments.join(len(part) * rows.shape[1], rows.mean(1))

    def _rows(self, x: Tensor) -> Iterator[Tensor]:
        if self._form == "magnitudes by example":
            for part in torch.split(x, max(1, _ROWS_BYTES * len(x) // max(1, x.numel() * x.element_size()))):
                rows = torch.unflatten(channels(self._layer, part), 1, (len(part), -1))
                yield rows.abs().mean(2)
            return
        if self._form != "patches" or not isinstance(self._layer, nn.modules.conv._ConvNd):
            yield (patches if self._form == "patches" else channels)(self._layer, x)
            return
        one = patches(self._layer, x[:1]).numel() * x.element_size()
        for part in torch.split(x, max(1, _ROWS_BYTES // one)):
            yield patches(self._layer, part)

    def flush(self) -> None:
        """Take in what the buffer holds."""
        if self._buffer is not None and self._filled:
            self.moments.add(self._buffer[:, : self._filled])
        self._filled = 0


class _Reader(Collector):
    """Reads one statistic from the sums that all of a pass share; the first one watches for all."""

    def __init__(self, statistic: InputStatistic, sums: _Sums, *, first: bool) -> None:
        self._statistic = statistic
        self._sums = sums
        self._first = first

    def watching(self, batch: Batch) -> AbstractContextManager[Any]:
        return self._sums.watching(batch) if self._first else nullcontext()

    def finish(self) -> dict[str, Tensor]:
        self._sums.finish()
        return self._sums.read(self._statistic)


@dataclass(frozen=True)
class Consumer:
    """A layer that reads units: a linear layer or a convolution, also a transposed one.

    Attributes:
        name: the layer's full name.
        layer: it.
        units: by group of units (groups, inputs) int64: of each input of each of the layer's groups, the
            unit that it belongs to, -1 for none.
    """

    name: str
    layer: nn.Module
    units: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> str:
        """The full name of its weight."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def kernel(self) -> int:
        """How many columns of its rows belong to one input."""
        return cast(Tensor, self.layer.weight).shape[2:].numel()

    def rows(self) -> Tensor:
        """(groups, rows, columns) float64, its weights; see `rows_of`."""
        return rows_of(cast(Tensor, self.layer.weight).detach(), self.layer).double()

    def columns(self, values: Tensor) -> Tensor:
        """(groups, columns) from (groups, inputs): of each column what its input has."""
        return values.repeat_interleave(self.kernel, 1)


def consumers(coupled: graph.Coupled | None, names: Collection[str] = ()) -> dict[str, Consumer]:
    """The layers that read units, by the names of their weights.

    Args:
        coupled: the groups whose units are counted.
        names: of the groups of units; none for all.

    Raises:
        InputError: where no units are counted.
        ModelError: naming a layer that reads units and is neither linear nor a convolution.
    """
    if coupled is None:
        raise InputError("this looks at the layers that read units: give the recipe the granularity 'unit'")
    own = {name for name, _ in coupled.model.named_parameters()}
    reading = [
        (group.name, member)
        for group in coupled.groups
        if not names or group.name in names
        for member in group.consumers
        if member.tensor in own
    ]
    layers = row_layers(coupled.model, [member.tensor for _, member in reading], transposed=True)
    found: dict[str, Consumer] = {}
    for name, member in reading:
        layer = layers[member.tensor]
        consumer = found.setdefault(member.tensor, Consumer(member.tensor.rpartition(".")[0], layer))
        consumer.units[name] = _units(member, layer)
    return found


def _units(member: graph.Member, layer: Any) -> Tensor:
    """(groups, inputs): see `Consumer`."""
    if member.dim != (0 if inputs_first(layer) or isinstance(layer, TRANSPOSED) else 1):
        raise ModelError(f"{member.tensor} reads units along its outputs, where nothing is known of them")
    index, unit = graph.entries(member)
    weight, groups = layer.weight, groups_of(layer)
    found = torch.full((weight.shape[member.dim],), -1, device=weight.device)
    found[index.to(weight.device)] = unit.to(weight.device)
    # a convolution's groups have each their own outputs, and their inputs along one and the same axis
    inputs = weight.shape[member.dim] // groups if isinstance(layer, TRANSPOSED) else len(found)
    return found.view(-1, inputs).expand(groups, inputs)
