"""The values of a recording, computed where the network asks for them, and what they come from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import _disable_current_modes

from prunekit.graph.captured import InputKind, is_written, memory_of, op_name

_OF_SIZES = frozenset(
    {"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"}
    | {"new_empty", "new_full", "new_ones", "new_zeros"}
)
"""What they give depends on the shape of what they read, and not on its values."""


class Values:
    """What the nodes of a recording give on the example inputs.

    Nothing is computed before a value is asked for, and then everything up to there, in order. It computes on
    copies, so that neither the network nor the inputs change, and draws no numbers from the user's generator.
    """

    def __init__(self) -> None:
        self._env: dict[fx.Node, Any] = {}
        self._waiting: list[fx.Node] = []
        self._writers: dict[fx.Node, list[fx.Node]] = {}
        self._copied: set[fx.Node] = set()

    def given(self, node: fx.Node, value: Any) -> None:
        """What a placeholder stands for."""
        self._env[node] = value

    def called(self, node: fx.Node) -> None:
        """An operator that was called."""
        self._waiting.append(node)
        if is_written(node):
            self._writers.setdefault(memory_of(node), []).append(node)

    def of(self, value: Any) -> Any:
        """Arguments with the values of the nodes among them."""
        with _disable_current_modes(), torch.no_grad(), torch._C._DisableAutocast():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                waiting, self._waiting = self._waiting, []
                for node in waiting:
                    self._env[node] = node.target(*self._own(node.args), **self._own(node.kwargs))  # type: ignore[operator]
            return self._own(value)

    def sources(self, nodes: list[fx.Node], kinds: Mapping[fx.Node, InputKind]) -> dict[fx.Node, InputKind]:
        """The placeholders whose values these nodes depend on, with their kinds."""
        found, waiting = set(), list(nodes)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            if op_name(node) not in _OF_SIZES:
                waiting.extend(node.all_input_nodes)
            waiting.extend(self._writers.get(memory_of(node), ()))
        return {node: kinds[node] for node in found if node in kinds}

    def is_written_to(self, node: fx.Node) -> bool:
        """Whether something was written into its memory."""
        return node in self._writers

    def _own(self, value: Any) -> Any:
        def own(node: fx.Node) -> Any:
            found = self._env[node]
            if node.op == "placeholder" and isinstance(found, Tensor) and node not in self._copied:
                found = self._env[node] = found.detach().clone()
                self._copied.add(node)
            return found

        return fx.node.map_arg(value, own)
