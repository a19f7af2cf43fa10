"""How often each piece of a maxout unit is its maximum."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from prunekit.batches import Batch
from prunekit.errors import InputError
from prunekit.maxout import Maxout
from prunekit.statistics.collect import Collector, StatContext, Statistic, sum_over_processes


@dataclass(frozen=True)
class MaxoutMaxima(Statistic):
    """By maxout layer: (units, pieces) float64, how often each piece was the maximum, over all positions."""

    def start(self, subject: StatContext) -> Collector:
        """A collector that counts while the network runs.

        Raises:
            InputError: if the recipe counts something else than maxout pieces.
        """
        layers = {name: subject.model.get_submodule(name) for name in subject.kept}
        found = {name: module for name, module in layers.items() if isinstance(module, Maxout)}
        if not found:
            raise InputError("this score ranks maxout pieces: give the recipe the granularity 'maxout_piece'")
        return _Counts(found)


class _Counts(Collector):
    def __init__(self, layers: Mapping[str, Maxout]) -> None:
        self._counts = {
            name: torch.zeros(
                layer.units, layer.pieces, dtype=torch.float64, device=layer.layer.weight.device
            )
            for name, layer in layers.items()
        }
        self._hooks: list[RemovableHandle] = [
            layer.layer.register_forward_hook(partial(self._count, name, layer))
            for name, layer in layers.items()
        ]

    @torch.no_grad()
    def _count(self, name: str, layer: Maxout, made_by: nn.Module, args: Any, outputs: Tensor) -> None:
        split = layer.split(outputs)
        dim = layer.dim % split.dim()
        # ties go to the first piece, as the gradient of a maximum over indices does
        winners = split.argmax(dim, keepdim=True)
        places = torch.zeros_like(split, dtype=torch.bool).scatter_(dim, winners, True)
        counts = places.movedim((dim - 1, dim), (0, 1)).flatten(2).sum(2, dtype=torch.float64)
        self._counts[name] += counts

    def batch(self, batch: Batch, loss: Tensor) -> None:
        """All is done while the network runs."""

    def finish(self) -> dict[str, Tensor]:
        sum_over_processes(list(self._counts.values()))
        return self._counts

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
