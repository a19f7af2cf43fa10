"""Statistics of layers that are pruned one after the other, taken in no more passes than they need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from prunekit.distributed import processes
from prunekit.graph.rows import inputs_first, row_layers
from prunekit.parts.context import StepContext
from prunekit.statistics import Found, InputStatistic, Statistic
from prunekit.statistics.shared_inputs import SharedInputs, ending_behind

Around = Callable[[], AbstractContextManager[Any]]


Collected = Callable[..., Found]
"""Takes a context, names of parameters, statistics of them, and `around`: what goes around each pass."""


@dataclass(eq=False)
class TurnStatistics:
    """What layers are given, each behind those that were pruned before it, while nothing else changes.

    The first pass through the network shows how often each layer is called, and which linear layers are given
    the same tensor, such as queries, keys and values. From then on the pass of a batch ends behind the layer
    that is asked for, where that is called once, and layers with the same input have the same statistics.

    Attributes:
        collected: takes statistics.
        shared: what parts have worked out from the statistics that were found last.
    """

    collected: Collected
    shared: dict[object, Any] = field(default_factory=dict)
    _calls: Mapping[str, Tensor] = field(default_factory=dict)
    _found: Found = field(default_factory=dict)
    _alike: frozenset[str] = frozenset()

    @staticmethod
    def serves(needs: Sequence[Statistic]) -> bool:
        """Whether all that is asked for is about the inputs of the layers, in one process."""
        return processes() == 1 and all(
            isinstance(need, InputStatistic) and not need.consumers for need in needs
        )

    def measure(self, context: StepContext, needs: Sequence[Statistic]) -> Found:
        """The statistics of the one layer of a step."""
        (name,) = context.step.layers
        if name in self._alike:
            return {need: {name: next(iter(values.values()))} for need, values in self._found.items()}
        self.shared = {}
        self._found = {}
        around: Around = nullcontext
        asked = tuple(needs)
        if not self._calls:
            asked = *asked, SharedInputs(tuple(context.weights))
        elif int(self._calls[name][0]) == 1:
            around = partial(ending_behind, row_layers(context.model, [name]))
        found = self.collected(context, [name], asked, around=around)
        if not self._calls:
            self._calls = found[asked[-1]]
        self._found = {need: found[need] for need in needs}
        self._alike = frozenset(other for other in self._calls if self._same(context, name, other))
        return self._found

    def _same(self, context: StepContext, name: str, other: str) -> bool:
        calls, first = self._calls[name].tolist()
        layers = context.layer(name), context.layer(other)
        return (
            calls == 1
            and self._calls[other].tolist() == [1, first]
            and all(isinstance(each, nn.Linear) or inputs_first(each) for each in layers)
            and len({getattr(each, "bias", None) is None for each in layers}) == 1
        )
