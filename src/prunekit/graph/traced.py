"""The exported graphs, with the sizes that every node's value has after units are taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from prunekit.graph.captured import Captured
from prunekit.graph.features import Features
from prunekit.graph.groups import Plan
from prunekit.graph.labels import Flags, Ints

Axes = tuple[Ints | None, ...]


@dataclass(frozen=True)
class Layer:
    """The labels of one analysis, and the group and unit that each stands for.

    Attributes:
        nodes: for each graph, by node, the labels of the axes of each of its values.
        group: (labels,) number of the plan's group, -1 for none.
        unit: (labels,) number of the unit within the group.
    """

    nodes: tuple[dict[str, tuple[Axes, ...]], ...]
    group: Ints
    unit: Ints


@dataclass(frozen=True)
class KeepMasks:
    """What stays of every node's axes once some units are taken out.

    Attributes:
        layers: of the plan.
        gone: for each of them (labels,) which are taken out.
    """

    layers: tuple[Layer, ...]
    gone: tuple[Flags, ...]

    def __call__(self, graph: int, node: str) -> tuple[tuple[Flags | None, ...], ...]:
        """Which entries of each axis of each value of a node stay; None where all do.

        Args:
            graph: number of the graph.
            node: name of the node; in a graph that a node calls, that node's name and "/" before it.
        """
        found: list[list[Flags | None]] = []
        for layer, gone in zip(self.layers, self.gone, strict=True):
            for number, axes in enumerate(layer.nodes[graph].get(node, ())):
                if number == len(found):
                    found.append([None] * len(axes))
                for axis, labels in enumerate(axes):
                    if labels is not None and gone[labels].any():
                        stays, before = ~gone[labels], found[number][axis]
                        found[number][axis] = stays if before is None else before & stays
        return tuple(tuple(axes) for axes in found)


@dataclass(frozen=True)
class CouplingGraph:
    """A plan with the graphs it was read from.

    Attributes:
        plan: the groups.
        graphs: in evaluation mode, then in training mode.
        layers: one for each analysis: an axis keeps what all of them keep.
        features: what the units of the group `input` are; None where there is no such group.
    """

    plan: Plan
    graphs: tuple[Captured, ...]
    layers: tuple[Layer, ...]
    features: Features | None = None

    def keeping(self, removed: Mapping[str, Collection[int]]) -> KeepMasks:
        """What stays of every node's axes without these units.

        Args:
            removed: for each group the units taken out.
        """
        sizes = [group.units for group in self.plan.groups]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        flags = np.zeros(int(starts[-1]) + 1, dtype=bool)  # the last is for labels of no group
        for number, group in enumerate(self.plan.groups):
            flags[starts[number] + np.array(sorted(removed.get(group.name, ())), dtype=np.int64)] = True
        gone = tuple(
            flags[np.where(layer.group >= 0, starts[layer.group] + layer.unit, -1)] for layer in self.layers
        )
        return KeepMasks(self.layers, gone)

    def kept(
        self, graph: int, node: str, removed: Mapping[str, Collection[int]]
    ) -> tuple[tuple[Flags | None, ...], ...]:
        """Which entries of each axis of each value of a node stay; see `KeepMasks`."""
        return self.keeping(removed)(graph, node)
