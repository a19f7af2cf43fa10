"""The values of a recording, computed where the network asks for them, and what they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import _disable_current_modes

from prunekit.graph.captured_graph import InputKind, argument, is_written, memory_of, op_name
from prunekit.seeds import seeded

_OF_SIZES = frozenset(
    {"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"}
    | {"new_empty", "new_full", "new_ones", "new_zeros"}
)
"""What they give depends on the shape of what they read, and not on its values."""

_PASSING_ON = frozenset(
    {"atleast_1d", "atleast_2d", "atleast_3d", "conj_physical", "einsum", "type_as"}
    | {"unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes"}
    | {"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"}
)
"""They may give what they read itself, as views do, and PyTorch does not say so."""

_UPDATING = {
    "batch_norm": "training",
    "native_batch_norm": "training",
    "instance_norm": "use_input_stats",
}
"""Norms that write to their running statistics, which PyTorch does not say either, and the flag for it."""


class Values:
    """What the nodes of a recording give on the example inputs.

    Computed is what an asked value comes from, and nothing else: its ancestors and, where something is
    written into memory that one of them reads, all that reads that memory or writes into it, each once and in
    the order of the recording. What is written into is a copy, so that neither the network nor the inputs
    change; no numbers are drawn from the user's generator, and which a node draws depends on its place alone.
    """

    def __init__(self) -> None:
        self._env: dict[fx.Node, Any] = {}
        self._places: dict[fx.Node, int] = {}
        self._touching: dict[fx.Node, list[fx.Node]] = {}
        self._writers: dict[fx.Node, list[fx.Node]] = {}

    def given(self, node: fx.Node, value: Any) -> None:
        """What a placeholder stands for."""
        self._env[node] = value

    def called(self, node: fx.Node) -> None:
        """An operator that was called."""
        self._places[node] = len(self._places)
        for memory in dict.fromkeys(map(_memory_of, (node, *node.all_input_nodes))):
            self._touching.setdefault(memory, []).append(node)
        for memory in map(_memory_of, _written_by(node)):
            if memory.op == "placeholder" and memory not in self._writers:
                self._copy(memory)
            self._writers.setdefault(memory, []).append(node)

    def of(self, value: Any) -> Any:
        """Arguments with the values of the nodes among them."""
        asked: list[fx.Node] = []
        fx.node.map_arg(value, asked.append)
        with _disable_current_modes(), torch.no_grad(), torch._C._DisableAutocast():
            for node in self._needed(asked):
                draws = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
                with seeded(self._places[node]) if draws else nullcontext():
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
            waiting.extend(self._writers.get(_memory_of(node), ()))
        return {node: kinds[node] for node in found if node in kinds}

    def is_written_to(self, node: fx.Node) -> bool:
        """Whether something was written into its memory."""
        return node in self._writers

    def _needed(self, asked: Iterable[fx.Node]) -> list[fx.Node]:
        """The nodes that are to be computed for these, in order."""
        found, waiting = set[fx.Node](), list(asked)
        while waiting:
            node = waiting.pop()
            if node in found:
                continue
            found.add(node)
            if node not in self._env:
                waiting.extend(node.all_input_nodes)
            memory = _memory_of(node)
            if memory in self._writers:  # who reads it must do so before the next writes
                waiting.extend(self._touching[memory])
        return sorted(found - self._env.keys(), key=self._places.__getitem__)

    def _copy(self, memory: fx.Node) -> None:
        """Let a placeholder stand for a copy, and what was computed of its memory be computed anew."""
        self._env[memory] = self._env[memory].detach().clone()
        for node in self._touching[memory]:
            if _memory_of(node) is memory:
                self._env.pop(node, None)

    def _own(self, value: Any) -> Any:
        return fx.node.map_arg(value, self._env.__getitem__)


def _memory_of(node: fx.Node) -> fx.Node:
    """The node whose memory a node's value lies in, or may lie in."""
    while op_name(node := memory_of(node)) in _PASSING_ON:
        (node, *_) = node.all_input_nodes
    return node


def _written_by(node: fx.Node) -> list[fx.Node]:
    """What a node writes into."""
    flag = _UPDATING.get(op_name(node))
    if flag is not None and argument(node, flag):
        statistics = (argument(node, name) for name in ("running_mean", "running_var"))
        return [each for each in statistics if isinstance(each, fx.Node)]
    return [node.all_input_nodes[0]] if is_written(node) else []
