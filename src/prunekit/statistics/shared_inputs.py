"""How often layers are called, which of them are given the same tensors, and passes that end early."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.batches import Batch
from prunekit.graph.rows import row_layers
from prunekit.statistics.collect import Collector, StatContext, Statistic, watched_calls


@dataclass(frozen=True)
class SharedInputs(Statistic):
    """By weight: (2,) int64, the most calls of its layer in a batch, and the first layer with the same input.

    Layers have the same input where they are called once in every batch, with the same tensor, to which
    nothing is written in between. None of them can then change what another one is given. A layer that shares
    its input with none is its own first one.

    Attributes:
        weights: the full names of the layers' weights; the first layer is told by its place among them.
    """

    weights: tuple[str, ...]

    needs_loss = False
    needs_forward = True
    additive = True

    def start(self, subject: StatContext) -> Collector:
        """A collector for these layers, whichever the others of the pass are for."""
        return _CallsCollector(self.weights, row_layers(subject.model, self.weights))


class _CallsCollector(Collector):
    def __init__(self, names: tuple[str, ...], layers: Mapping[str, nn.Module]) -> None:
        self._layers, self._number = layers, {name: place for place, name in enumerate(names)}
        self._most = dict.fromkeys(names, 0)
        self._first: dict[str, int] = {}

    @contextmanager
    def watching(self, batch: Batch) -> Iterator[None]:
        calls = dict.fromkeys(self._layers, 0)
        inputs: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        first: dict[str, int] = {}

        def see(name: str, x: Tensor, output: Tensor) -> None:
            calls[name] += 1
            version = -1 if x.is_inference() else x._version
            known, at, other = inputs.get(id(x), (None, -1, name))
            if known is None or known() is not x or at != version or version < 0:
                inputs[id(x)] = weakref.ref(x), version, name
                other = name
            first[name] = self._number[other]

        with watched_calls(self._layers, see):
            yield
        for name, own in self._number.items():
            self._most[name] = max(self._most[name], calls[name])
            here = first.get(name, own)
            if self._first.setdefault(name, here) != here:
                self._first[name] = own

    def finish(self) -> dict[str, Tensor]:
        """Of this process alone."""
        return {
            name: torch.tensor([most, self._first.get(name, self._number[name])])
            for name, most in self._most.items()
        }


class _AllCalledError(BaseException):
    """All layers have been called: nothing behind them is needed."""


@contextmanager
def ending_behind(layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """A pass through the network inside ends as soon as each of the layers has been called."""
    left = set(layers)

    def see(name: str, x: Tensor, output: Tensor) -> None:
        left.discard(name)
        if not left:
            raise _AllCalledError

    try:
        with watched_calls(layers, see):
            yield
    except _AllCalledError:
        return
