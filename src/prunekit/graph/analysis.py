"""The propagation through all graphs of a network, repeated until every cut leaves something to take out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from prunekit.graph.capture import tensors_of
from prunekit.graph.captured import Captured
from prunekit.graph.groups import Features
from prunekit.graph.labels import (
    Classes,
    Dim,
    Ints,
    Labels,
    Propagator,
    Role,
    SplitPolicy,
    SplitSite,
    Value,
    fixed,
    frozen_rows,
)
from prunekit.graph.propagate import propagate

# each round drops at least one way to cut an axis; more rounds than this mean that something is wrong
_ROUNDS = 200

FEATURES = ""
"""Stands for the network's input in the place of a parameter's name, which is never empty."""

PARAMETRIZED = "it is computed by a parametrization, such as weight norm"


@dataclass(frozen=True)
class Block:
    """The labels of one axis of one parameter or buffer: `start`, `start` + 1, ..."""

    tensor: str
    dim: int
    start: int
    size: int


@dataclass(frozen=True)
class Propagation:
    """What the labels are once they went through all graphs.

    Attributes:
        blocks: the axes of the parameters and buffers that are used, by their labels.
        propagator: roles, kinds and norms that were seen, and the labels of every node.
        classes: the labels after joining.
        nodes: for each graph the labels of each node's axes, by the node's name; several values in a row.
    """

    blocks: tuple[Block, ...]
    propagator: Propagator
    classes: Classes
    nodes: tuple[dict[str, tuple[tuple[Ints | None, ...], ...]], ...]

    def role(self, block: Block) -> Role:
        """What an axis is used for."""
        return self.propagator.roles.get((block.tensor, block.dim), "along")


def analysed(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    *,
    policy: SplitPolicy,
    features: Features | None = None,
) -> Propagation:
    """The propagation in which no split is known to leave nothing.

    Args:
        model: the network.
        graphs: as exported.
        ignored: parameters and buffers that must not change, with the reason.
        policy: along which part an axis that is split is cut.
        features: of the network's input, if they are to be units, too.
    """
    rejected: set[tuple[SplitSite, int]] = set()
    for _ in range(_ROUNDS):
        found = _propagated(model, graphs, ignored, rejected, policy, features)
        more = _rejected_splits(found)
        if not more:
            break
        rejected |= more
    return found


def _rejected_splits(found: Propagation) -> set[tuple[SplitSite, int]]:
    """The cuts that leave nothing.

    Of those that hang together the first may be to blame for all: only those go that cut the same way, as
    queries and keys do, or evaluation and training.
    """
    rejected: set[tuple[SplitSite, int]] = set()
    ways: dict[int, tuple[object, int]] = {}
    for choice in found.propagator.choices:
        if not frozen_rows(choice.labels, found.classes):
            continue
        roots = set(found.classes.root[choice.labels].tolist()) - {0}
        way = (_kind_of_cut(choice.site), choice.candidate)
        before = {ways[found_root] for found_root in roots if found_root in ways}
        if not before or way in before:
            rejected.add((choice.site, choice.candidate))
            before.add(way)
        for found_root in roots:
            ways.setdefault(found_root, min(before, key=str))
    return rejected


def _propagated(
    model: nn.Module,
    graphs: Sequence[Captured],
    ignored: dict[str, str],
    rejected: set[tuple[SplitSite, int]],
    policy: SplitPolicy,
    features: Features | None,
) -> Propagation:
    labels = Labels()
    used = _used(graphs)
    given = None if features is None else labels.new(features.size)
    values, blocks = _labelled(model, used, labels)
    if given is not None:
        blocks.insert(0, Block(FEATURES, 0, int(given[0]), len(given)))
    for name, reason in ignored.items():
        for dim in values.get(name, ()):
            labels.freeze(dim.labels, reason)
    propagator = Propagator(labels, policy, rejected)
    for name, reason in ignored.items():
        if reason == PARAMETRIZED and values.get(name, ()):
            propagator.role(values[name][0], "producer")
    nodes = []
    for part, graph in enumerate(graphs):
        propagator.part, propagator.env = part, {}
        propagator.known = {} if features is None or given is None else features.known(graph, given)
        propagator.constants.update(node for node in graph.placeholders if node.name in graph.tensors)
        outputs = propagate(propagator, graph.graph, graph.named, _entry(graph, values))
        propagator.node = None
        for (kind, _), value in zip(graph.outputs, outputs, strict=True):
            for dim in value if isinstance(value, tuple) else ():
                what = "the network's output" if kind != "buffer" else "written to a buffer"
                labels.freeze(dim.labels, f"is {what} in training" if part else f"is {what}")
        nodes.append({propagator.names[node]: _axes(value) for node, value in propagator.env.items()})
    return Propagation(tuple(blocks), propagator, labels.classes(), tuple(nodes))


def _axes(value: Any) -> tuple[tuple[Ints | None, ...], ...]:
    if isinstance(value, tuple):
        return (tuple(dim.labels for dim in value),)
    if isinstance(value, list):
        return tuple(axes for item in value for axes in _axes(item))
    return ()


def _used(graphs: Sequence[Captured]) -> list[str]:
    """Names of the parameters and buffers that some graph reads, in the order of the graphs."""
    found: dict[str, None] = {}
    for graph in graphs:
        for node in graph.placeholders:
            if node.users and node.name in graph.tensors:
                found[graph.tensors[node.name]] = None
    return list(found)


def _labelled(model: nn.Module, names: Sequence[str], labels: Labels) -> tuple[dict[str, Value], list[Block]]:
    tensors = tensors_of(model)
    values: dict[str, Value] = {}
    blocks: list[Block] = []
    for name in names:
        tensor = tensors[name]
        if not tensor.is_floating_point():
            values[name] = fixed(tensor.shape)
            continue
        dims = []
        for dim, size in enumerate(tensor.shape):
            found = labels.new(size) if size > 1 else None
            if found is not None:
                blocks.append(Block(name, dim, int(found[0]), size))
            dims.append(Dim(size, found, zero=True, origin=(name, dim)))
        values[name] = tuple(dims)
    return values, blocks


def _entry(graph: Captured, values: dict[str, Value]) -> Callable[[fx.Node, int], Any]:
    def entry(node: fx.Node, _: int) -> Any:
        name = graph.tensors.get(node.name)
        if name is not None:
            return values.get(name, ())
        val = node.meta.get("val")
        return fixed(val.shape) if isinstance(val, torch.Tensor) else None

    return entry


def positions(found: Propagation) -> tuple[Ints, Ints, Ints]:
    """For all labels of the blocks, in order: the label, the number of its block and its index there."""
    sizes = np.array([block.size for block in found.blocks], dtype=np.int64)
    starts = np.array([block.start for block in found.blocks], dtype=np.int64)
    number = np.repeat(np.arange(sizes.size), sizes)
    offset = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return starts[number] + offset, number, offset


def _kind_of_cut(site: SplitSite) -> object:
    tag = site[-1]
    return tag[-1] if isinstance(tag, tuple) else tag
