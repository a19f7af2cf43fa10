"""Random numbers that a network draws, the same for a smaller one: without those of the units that went."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from prunekit.graph.captured_graph import Captured, op_name
from prunekit.graph.coupling_graph import KeepMasks
from prunekit.graph.labels import Flags
from prunekit.graph.ops.registry import taken

DRAWS = frozenset(
    {"bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal", "poisson"}
    | {"rand", "rand_like", "randint", "randint_like", "randn", "randn_like", "random", "randperm", "uniform"}
)
"""Operators that draw numbers, without the "_" of those that write in place."""

Axes = Sequence[Flags | None]


def draws_of(graph: Captured) -> list[fx.Node]:
    """The nodes of a graph that draw numbers."""
    return [node for node in graph.graph.nodes if node.op == "call_function" and op_name(node) in DRAWS]


class Draws(TorchFunctionMode):
    """The numbers that one run draws, given again to another run, in order by operator.

    Where the other draws fewer, it gets those that the labels of the drawing node keep. Dropout is none of
    these: it is left out where networks are compared.

    Args:
        graph: of the first network in this mode.
        number: of that graph.
        keeping: what stays of its nodes.
    """

    def __init__(self, graph: Captured, number: int, keeping: KeepMasks) -> None:
        super().__init__()
        self._axes: dict[str, list[Axes]] = {}
        for node in draws_of(graph):
            axes = keeping(number, node.name)
            self._axes.setdefault(op_name(node), []).append(axes[0] if axes else ())
        self._taken: dict[str, list[Tensor]] = {}
        self._places: dict[str, int] | None = None

    def __enter__(self) -> Draws:
        """Remember what is drawn within, and that alone, or give it again."""
        if self._places is None:
            self._taken = {}
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    @contextmanager
    def again(self) -> Iterator[None]:
        """What is drawn within is given from what was drawn before."""
        self._places = {}
        try:
            with self:
                yield
        finally:
            self._places = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call it, and remember or replace what it draws."""
        found = func(*args, **(kwargs or {}))
        called = getattr(getattr(func, "overloadpacket", func), "__name__", "")
        name = called.removesuffix("_")
        if name not in DRAWS or not isinstance(found, Tensor):
            return found
        if self._places is None:
            self._taken.setdefault(name, []).append(found.detach().clone())
            return found
        place = self._places.get(name, 0)
        self._places[name] = place + 1
        drawn = self._drawn(name, place)
        if drawn is None or drawn.shape != found.shape:
            return found
        if called == name:
            return drawn.to(found)
        with torch.no_grad():
            return found.copy_(drawn)

    def _drawn(self, name: str, place: int) -> Tensor | None:
        """What was drawn the same time before, without what is taken out."""
        before = self._taken.get(name, [])
        if place >= len(before):
            return None
        drawn = before[place]
        every = self._axes.get(name, [])
        axes = every[place] if len(every) == len(before) else ()
        for axis, flags in enumerate(axes):
            if flags is not None and flags.size == drawn.shape[axis]:
                drawn = taken(drawn, axis, flags)
        return drawn
