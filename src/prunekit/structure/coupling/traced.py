"""The exported graphs, with the sizes that every node's value has after units are taken out."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunekit.structure.coupling.capture import Captured
from prunekit.structure.coupling.groups import Plan
from prunekit.structure.coupling.labels import Ints

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
class Traced:
    """A plan with the graphs it was read from.

    Attributes:
        plan: the groups.
        graphs: in evaluation mode, then in training mode.
        layers: one for each analysis: an axis keeps what all of them keep.
    """

    plan: Plan
    graphs: tuple[Captured, ...]
    layers: tuple[Layer, ...]

    def kept(
        self, graph: int, node: str, removed: Mapping[str, Collection[int]]
    ) -> tuple[tuple[NDArray[np.bool_] | None, ...], ...]:
        """Which entries of each axis of each value of a node stay; None where all do.

        Args:
            graph: number of the graph.
            node: name of the node; in a graph that a node calls, that node's name and "/" before it.
            removed: for each group the units taken out.
        """
        found: list[list[NDArray[np.bool_] | None]] = []
        for layer in self.layers:
            gone = self._gone(layer, removed)
            for number, axes in enumerate(layer.nodes[graph].get(node, ())):
                if number == len(found):
                    found.append([None] * len(axes))
                for axis, labels in enumerate(axes):
                    if labels is not None and gone[labels].any():
                        stays, before = ~gone[labels], found[number][axis]
                        found[number][axis] = stays if before is None else before & stays
        return tuple(tuple(axes) for axes in found)

    def _gone(self, layer: Layer, removed: Mapping[str, Collection[int]]) -> NDArray[np.bool_]:
        gone = np.zeros(layer.group.size, dtype=bool)
        for number, group in enumerate(self.plan.groups):
            units = sorted(removed.get(group.name, ()))
            if units:
                gone |= (layer.group == number) & np.isin(layer.unit, units)
        return gone
