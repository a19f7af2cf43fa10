"""What the layers that read units are given: means and covariances of their inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.errors import DataError, InputError
from prunekit.graph import Chain
from prunekit.graph.rows import patches
from prunekit.statistics.collect import Collector, Found, StatContext, Statistic
from prunekit.statistics.inputs import LayerHessian, LayerInputMean
from prunekit.statistics.moments import Moments
from prunekit.units.chain_runner import BUDGET_BYTES, Link, pieces
from prunekit.units.layers import by_unit, unit_dim

_ROWS_BYTES = 64 * 2**20
"""Memory for the rows in float64 whose products are taken at once."""


class ConsumerStatistic(Statistic):
    """Something of the inputs of each layer that reads units, before the step."""

    @property
    def needs_loss(self) -> bool:
        """The collectors run the chain up to the last reader by themselves."""
        return False

    def start(self, subject: StatContext) -> Collector:
        """A collector for the groups whose units are counted.

        Of coupled groups it is by weight of a layer that reads some of their units: (groups, columns) means
        or (groups, columns, columns) covariances of what its rows are multiplied with.

        Raises:
            InputError: if the recipe's shape counts weights, not units.
            ModelError: naming a layer that reads coupled units and is neither linear nor a convolution.
        """
        if subject.coupled is not None:
            return _Readers(subject, pairs=self.pairs)
        if subject.chain is None:
            raise InputError("this repair is for units: give the recipe the shape 'unit'")
        return _Inputs(self, subject.chain, subject.kept)

    @abstractmethod
    def blocks(self, link: Link, x: Tensor) -> Iterator[Tensor]:
        """A consumer's inputs (n, ...) as float64 blocks (repeat, rows, columns), see `Moments`."""

    @property
    @abstractmethod
    def pairs(self) -> bool:
        """Whether covariances are wanted; else the mean, in the shape of one input."""


@dataclass(frozen=True)
class ConsumerInputMean(ConsumerStatistic):
    """By group: the mean over examples of what the consumer reads, in the shape of one of its inputs."""

    @property
    def pairs(self) -> bool:
        """No."""
        return False

    def blocks(self, link: Link, x: Tensor) -> Iterator[Tensor]:
        """Each number is a column."""
        yield x.double().flatten(1).unsqueeze(0)


@dataclass(frozen=True)
class UnitCovariance(ConsumerStatistic):
    """By group: (units, units) covariances of the units over examples and positions.

    Where a unit is several columns of a linear consumer, each about its own mean, their mean is taken.
    """

    @property
    def pairs(self) -> bool:
        """Yes."""
        return True

    def blocks(self, link: Link, x: Tensor) -> Iterator[Tensor]:
        """One block for each of a unit's columns."""
        dim = unit_dim(link.consumer, x)
        rows = by_unit(x, link.group, dim).movedim((dim, dim + 1), (-1, 0))
        yield rows.double().flatten(1, -2)


@dataclass(frozen=True)
class InputCovariance(ConsumerStatistic):
    """By group: (columns, columns) covariances of the columns of the consumer's flattened weights.

    For a convolution the rows are its patches, padding included, at all positions.
    """

    @property
    def pairs(self) -> bool:
        """Yes."""
        return True

    def blocks(self, link: Link, x: Tensor) -> Iterator[Tensor]:
        """A few examples' rows at a time: patches are many times the inputs."""
        layer = cast(nn.Module, link.consumer.module)
        at_once = max(1, _ROWS_BYTES // (8 * patches(layer, x[:1]).numel()))
        for part in torch.split(x, at_once):
            yield patches(layer, part).double()


class _Inputs(Collector):
    def __init__(self, statistic: ConsumerStatistic, chain: Chain, kept: Mapping[str, Tensor]) -> None:
        self._statistic = statistic
        self._chain = chain
        self._names = set(kept) or {group.name for group in chain.groups}
        self._found: dict[str, Moments] = {}
        self._shapes: dict[str, torch.Size] = {}

    @torch.no_grad()
    def batch(self, batch: Batch, loss: Tensor) -> None:
        for flow, x in pieces(self._chain, batch[0], BUDGET_BYTES):
            readers = {link.position: link for link in flow.links if link.group.name in self._names}
            for place in range(max(readers) + 1):
                if place in readers:
                    self._take(readers[place], x)
                x = self._chain.stages[place].run(x)

    def _take(self, link: Link, x: Tensor) -> None:
        name = link.group.name
        if self._shapes.setdefault(name, x.shape[1:]) != x.shape[1:]:
            raise DataError(
                f"the layer {link.consumer.name!r} reads inputs of several sizes, "
                f"{tuple(self._shapes[name])} and {tuple(x.shape[1:])}, which have no mean"
            )
        for block in self._statistic.blocks(link, x):
            if name not in self._found:
                self._found[name] = Moments(
                    len(block), block.shape[2], pairs=self._statistic.pairs, pooled=True, device=x.device
                )
            self._found[name].add(block)

    def finish(self) -> dict[str, Tensor]:
        values = {}
        for name, moments in self._found.items():
            moments.reduce()
            if self._statistic.pairs:
                values[name] = moments.covariance[0]
            else:
                values[name] = moments.mean.view(self._shapes[name])
            if not bool(torch.isfinite(values[name]).all()):
                raise DataError(f"the units of {name!r} are not finite on the calibration data")
        return values


class _Readers(Collector):
    """Means or covariances of the inputs of all layers that read coupled units, in one run of the network."""

    def __init__(self, subject: StatContext, *, pairs: bool) -> None:
        assert subject.coupled is not None
        self._model = subject.model
        own = dict(subject.model.named_parameters())
        members = [member for group in subject.coupled.groups for member in group.members]
        names = [each.tensor for each in members if each.role == "consumer" and each.tensor in own]
        # sums of their own: those of the scores are of other layers
        shared = subject.shared.setdefault("readers", {})
        self._first = not shared
        part = replace(subject, names=list(dict.fromkeys(names)), shared=shared)
        self._reader = (LayerHessian(centred=True) if pairs else LayerInputMean()).start(part)

    def batch(self, batch: Batch, loss: Tensor) -> None:
        if self._first:
            with self._reader.watching(), torch.no_grad():
                self._model(batch[0])

    def finish(self) -> dict[str, Tensor]:
        return self._reader.finish()


def second_moments(layer: nn.Module, found: Found, name: str) -> Tensor:
    """(columns, columns) float64, E[x x'] of what a layer reads, about zero.

    Args:
        layer: the consumer of a group of units.
        found: with `ConsumerInputMean` and `InputCovariance`.
        name: the group's.
    """
    mean = patches(layer, found[ConsumerInputMean()][name].unsqueeze(0))[0].mean(0)
    return found[InputCovariance()][name] + mean.outer(mean)
