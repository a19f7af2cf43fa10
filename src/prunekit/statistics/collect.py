"""One pass over the data for every statistic that is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.errors import DataError
from prunekit.losses import Loss
from prunekit.structure import Chain
from prunekit.targets import unwrap


@dataclass(frozen=True)
class Subject:
    """What statistics are collected of.

    Attributes:
        model: the network.
        names: the parameters that are of interest, by full name.
        chain: the network as a chain of layers, where units are counted.
        kept: by group of units, (units,) booleans: False for those that are off already.
    """

    model: nn.Module
    names: Sequence[str]
    chain: Chain | None = None
    kept: Mapping[str, Tensor] = field(default_factory=dict)


class Statistic(ABC):
    """A request for something measured on data; equal requests are served by one collector.

    Subclasses are frozen dataclasses, so that they can be the keys of what was found.
    """

    @property
    def needs_loss(self) -> bool:
        """Whether the collector looks at the loss of a pass through the whole network."""
        return True

    @abstractmethod
    def start(self, subject: Subject) -> Collector:
        """A collector for this subject."""


class Collector(ABC):
    """Gathers one statistic while the batches of a pass go by. Sums are additive over processes."""

    @abstractmethod
    def batch(self, batch: Batch, loss: Tensor) -> None:
        """Take in a batch (inputs, targets) and its mean loss, with the graph behind it.

        The loss is NaN, without a graph, if no statistic of the pass needs it.
        """

    @abstractmethod
    def finish(self) -> dict[str, Tensor]:
        """One tensor per parameter or group of units, reduced over all processes."""

    def close(self) -> None:
        """Remove whatever the collector put on the model; called even if the pass breaks off."""
        return


Found = Mapping[Statistic, Mapping[str, Tensor]]
"""What a pass found: for every request, one tensor per parameter or group of units."""


def collect(subject: Subject, batches: Iterable[Batch], needs: Iterable[Statistic], *, loss: Loss) -> Found:
    """Run the model once over the batches, in eval mode, and gather every statistic that is asked for.

    The model's parameters, gradients and training flags are left as they were.

    Raises:
        DataError: if there is no batch, or the loss on one is not finite.
    """
    requests = list(dict.fromkeys(needs))
    if not requests:
        return {}
    inner = unwrap(subject.model)
    subject = replace(subject, model=inner)
    needs_loss = any(request.needs_loss for request in requests)
    modes = [(module, module.training) for module in inner.modules()]
    collectors: list[Collector] = []
    try:
        for request in requests:
            collectors.append(request.start(subject))
        inner.eval()
        seen = 0
        for inputs, targets in batches:
            value = torch.tensor(torch.nan)
            if needs_loss:
                with torch.enable_grad():
                    value = loss(inner(inputs), targets)
                if not bool(torch.isfinite(value)):
                    raise DataError(
                        f"the loss on calibration batch {seen} is {value.item()}: scores would be NaN"
                    )
            for collector in collectors:
                collector.batch((inputs, targets), value)
            seen += 1
        if not seen:
            raise DataError("the calibration data is empty: there is no batch to collect statistics from")
        return {request: collector.finish() for request, collector in zip(requests, collectors, strict=True)}
    finally:
        for collector in collectors:
            collector.close()
        for module, mode in modes:
            module.training = mode


def sum_over_processes(tensors: Sequence[Tensor]) -> None:
    """Add up tensors in place over all processes of torch.distributed, if there are several."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)
