"""Integer labels for the entries of axes, which of them go together, and how they move through a graph.

Every entry of every axis of a parameter has a label of its own. Propagation through the network moves the
labels along with the data; where two labels meet, they are joined. Label 0 is the entry that cannot be taken
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import fx

from prunekit.graph.captured_graph import argument, module_of, op_name
from prunekit.graph.places import place_in, short

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Classes:
    """The labels after joining: `root[label]` names its class, `reason[root]` why a class is frozen."""

    root: Ints
    reason: dict[int, str]


class Labels:
    """Labels given out so far, the pairs that go together, and what froze some of them."""

    def __init__(self) -> None:
        self.count = 1
        self._pairs: list[tuple[Ints, Ints]] = []
        self._frozen: list[tuple[Ints, str]] = []

    def new(self, size: int) -> Ints:
        """Labels for `size` entries that nothing else has."""
        start = self.count
        self.count += size
        return np.arange(start, self.count, dtype=np.int64)

    def freeze(self, labels: Ints | None, reason: str) -> None:
        """Nothing that has one of these labels can be taken out."""
        if labels is not None:
            alive = labels[labels > 0].ravel()
            if alive.size:
                self._frozen.append((alive, reason))

    def join(self, first: Ints | None, second: Ints | None, reason: str) -> Ints | None:
        """Labels of an axis where two axes meet entry by entry; None is an axis that cannot change.

        Where one entry cannot be taken out, the other is frozen for the reason given.
        """
        if first is None or second is None:
            self.freeze(first, reason)
            self.freeze(second, reason)
            return None
        first, second = np.broadcast_arrays(first, second)
        differ = first != second
        if not differ.any():
            return first
        self.freeze(first[differ & (second == 0)], reason)
        self.freeze(second[differ & (first == 0)], reason)
        both = differ & (first > 0) & (second > 0)
        if both.any():
            self._pairs.append((first[both], second[both]))
        return np.where(second == 0, 0, first)

    def classes(self) -> Classes:
        """The connected components of all labels given out."""
        root = np.arange(self.count, dtype=np.int64)
        if self._pairs:
            first = np.concatenate([pair[0] for pair in self._pairs])
            second = np.concatenate([pair[1] for pair in self._pairs])
            root = connected(root, first, second)
        reason: dict[int, str] = {}
        for labels, why in self._frozen:
            for found in np.unique(root[labels]).tolist():
                reason.setdefault(found, why)
        return Classes(root, reason)


def connected(root: Ints, first: Ints, second: Ints) -> Ints:
    """The smallest label of each connected component, by hooking and pointer jumping on whole arrays.

    Args:
        root: (labels,) the labels themselves, 0, 1, 2, ...
        first: (pairs,) one end of each pair.
        second: (pairs,) the other.

    Shiloach & Vishkin 1982, An O(log n) parallel connectivity algorithm.
    """
    root = root.copy()
    while True:
        low, high = root[first], root[second]
        open_pairs = low != high
        if not open_pairs.any():
            return root
        first, second = first[open_pairs], second[open_pairs]
        low, high = low[open_pairs], high[open_pairs]
        np.minimum.at(root, np.maximum(low, high), np.minimum(low, high))
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped


class Dim(NamedTuple):
    """One axis of one tensor.

    Attributes:
        size: how many entries it has.
        labels: (size,) label of each entry; None where none can be taken out.
        zero: whether the entries are zero once the slices of the parameters with the same labels are zero.
        origin: the parameter and its axis, where the axis is that of a parameter.
    """

    size: int
    labels: Ints | None = None
    zero: bool = False
    origin: tuple[str, int] | None = None


Value = tuple[Dim, ...]


def fixed(shape: Sequence[int]) -> Value:
    """A tensor with no entry that can be taken out."""
    return tuple(Dim(int(size)) for size in shape)


def position(dim: int, rank: int) -> int:
    """An axis counted from the front."""
    return dim % rank if rank else 0


Role = Literal["producer", "consumer", "along", "divisor"]
"""What an axis of a parameter does with units."""
SplitSite = tuple[object, ...]
SplitPolicy = Literal["most", "first", "last"]
GROUPS = "groups"
"""The tag of an axis that is cut into groups: whole groups go, or the same offset within each group."""


@dataclass
class TakenSplit:
    """An axis that can be cut in one way or another, and the way taken: each row of labels goes as one."""

    site: SplitSite
    candidate: int
    labels: Ints


@dataclass
class Propagator:
    """Labels, and everything that was seen of them.

    Attributes:
        labels: the labels and their joins.
        policy: how an axis that is split is cut: along its "first" part (heads), its "last" (head width), or
            the part that leaves "most" units.
        rejected: ways to cut an axis that were found to leave nothing to take out.
        roles: what the axes of parameters are used for.
        hints: labels and what kind of units they seem to be.
        norms: labels over which a statistic runs, and the module.
        choices: the ways taken where an axis can be cut in several.
        env: what is known of each node's value; a list where the node gives several tensors.
        names: of the nodes; those of a graph that a node calls begin with the name of that node and "/".
        constants: nodes that do not depend on the network's input.
        known: nodes whose values' labels are given.
        node: the node that labels are propagated through.
        part: number of the graph, to tell nodes of different graphs apart.
        prefix: names of the nodes that the graph propagated through is called by.
    """

    labels: Labels
    policy: SplitPolicy
    rejected: set[tuple[SplitSite, int]]
    env: dict[fx.Node, Any] = field(default_factory=dict)
    roles: dict[tuple[str, int], Role] = field(default_factory=dict)
    hints: list[tuple[str, Ints]] = field(default_factory=list)
    norms: list[tuple[str, Ints]] = field(default_factory=list)
    choices: list[TakenSplit] = field(default_factory=list)
    names: dict[fx.Node, str] = field(default_factory=dict)
    constants: set[fx.Node] = field(default_factory=set)
    known: Mapping[fx.Node, Value] = field(default_factory=dict)
    node: fx.Node | None = None
    part: int = 0
    prefix: str = ""

    @property
    def module(self) -> str:
        """Name of the module that the node belongs to."""
        return "" if self.node is None else module_of(self.node)

    @property
    def where(self) -> str:
        """The operator, the module and the line of the network's code, for a reason."""
        if self.node is None:
            return ""
        within = f" in '{self.module}'" if self.module else ""
        return f"'{self.operator}'{within}{short(place_in(self.node))}"

    @property
    def operator(self) -> str:
        """The operator's name, without library and overload."""
        return "" if self.node is None else op_name(self.node)

    def argument(self, name: str) -> Any:
        """An argument of the operator by its name in the schema, or its default; None where there is none."""
        return None if self.node is None else argument(self.node, name)

    @property
    def val(self) -> Any:
        """What the node gave when it was exported: a tensor without data, or several."""
        return None if self.node is None else self.node.meta.get("val")

    @property
    def all_computed(self) -> bool:
        """Whether everything that the node reads depends on the network's input."""
        return self.node is not None and self.constants.isdisjoint(self.node.all_input_nodes)

    def join(self, first: Dim, second: Dim) -> Ints | None:
        """Labels where two axes of one size meet."""
        return self.labels.join(
            first.labels, second.labels, f"meets an axis that cannot change at {self.where}"
        )

    def join_all(self, dims: Iterable[Dim]) -> Ints | None:
        """Labels where several axes of one size meet."""
        first, *rest = dims
        labels = first.labels
        for dim in rest:
            labels = self.join(first._replace(labels=labels), dim)
        return labels

    def freeze(self, dims: Iterable[Dim], why: str) -> None:
        """None of the entries of these axes can be taken out, because of this node."""
        for dim in dims:
            self.labels.freeze(dim.labels, f"{why} at {self.where}")

    def fix(self, dim: Dim, why: str) -> Dim:
        """The axis, frozen."""
        self.freeze([dim], why)
        return Dim(dim.size)

    def role(self, dim: Dim, role: Role) -> None:
        """A parameter's axis produces or reads units."""
        if dim.origin is not None and self.roles.get(dim.origin) != "producer":
            self.roles[dim.origin] = role

    def hint(self, kind: str, labels: Ints | None) -> None:
        """What kind of units these labels are."""
        if labels is not None:
            self.hints.append((kind, labels))

    def normalised(self, dim: Dim) -> None:
        """A statistic runs over these entries."""
        if dim.labels is not None:
            self.norms.append((self.module or str(self.node), dim.labels))

    def choose(self, tag: object, axes: Sequence[int], sizes: Sequence[int]) -> int | None:
        """The axis to cut along: by the policy the first that is not rejected; None where all are.

        Args:
            tag: tells this cut from others at the same node; `GROUPS` leave most units in any case.
            axes: by number.
            sizes: of all axes: how many units each would leave.
        """
        if self.policy == "most" or tag == GROUPS:
            axes = sorted(axes, key=lambda axis: -sizes[axis])
        elif self.policy == "last":
            axes = axes[::-1]
        site = self._site(tag)
        return next((axis for axis in axes if (site, axis) not in self.rejected), None)

    def chosen(self, tag: object, axis: int, *labels: Ints | None) -> None:
        """Record the way taken, to see afterwards whether it leaves anything to take out of these labels."""
        known = [each for each in labels if each is not None]
        if known:
            self.choices.append(TakenSplit(self._site(tag), axis, np.concatenate(known)))

    def _site(self, tag: object) -> SplitSite:
        return (self.part, f"{self.prefix}{self.node}", tag)

    def values(self, args: Any) -> list[Value]:
        """What is known of all tensors among nested arguments."""
        found: list[Value] = []
        if isinstance(args, fx.Node):
            known = self.env.get(args)
            if isinstance(known, tuple):
                found.append(known)
            elif isinstance(known, list):
                found.extend(value for value in known if isinstance(value, tuple))
        elif isinstance(args, (list, tuple)):
            for arg in args:
                found.extend(self.values(arg))
        elif isinstance(args, dict):
            found.extend(self.values(list(args.values())))
        return found

    def unknown(self, why: str) -> Any:
        """Freeze everything that flows into the node; what comes out cannot change."""
        assert self.node is not None
        for value in self.values([self.node.args, self.node.kwargs]):
            self.freeze(value, why)
        return result_shape(self.node.meta.get("val"))


def result_shape(val: Any) -> Any:
    """A value without labels for whatever a node gives."""
    if hasattr(val, "shape"):
        return fixed(val.shape)
    if isinstance(val, (list, tuple)):
        return [result_shape(item) for item in val]
    return None


def frozen_rows(labels: Ints, classes: Classes) -> bool:
    """Whether these labels leave no two classes of which one can be taken out."""
    roots = np.unique(classes.root[labels[labels > 0]])
    alive = [found for found in roots.tolist() if found not in classes.reason]
    return not alive or len(roots) + int((labels == 0).any()) < 2


def matched(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The smallest runs of axes of two shapes that hold the same entries; axes of size 1 are left out.

    (2, 6, 5) seen as (2, 3, 2, 5) gives ([0], [0]), ([1], [1, 2]), ([2], [3]).
    """
    before = [axis for axis, size in enumerate(old) if size != 1]
    after = [axis for axis, size in enumerate(new) if size != 1]
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        left, right = [before[i]], [after[j]]
        a, b = old[before[i]], new[after[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(before[i])
                a *= old[before[i]]
                i += 1
            else:
                right.append(after[j])
                b *= new[after[j]]
                j += 1
        runs.append((left, right))
    return runs


def reshaped(propagator: Propagator, value: Value, shape: Sequence[int]) -> Value:
    """The labels of a tensor seen in another shape with the same order of entries."""
    if any(dim.size == 0 for dim in value):
        return tuple(Dim(size) for size in shape)
    propagator.freeze([dim for dim in value if dim.size == 1], "is the only entry of an axis")
    result = [Dim(size) for size in shape]
    for run, (left, right) in enumerate(matched([dim.size for dim in value], shape)):
        if len(left) == 1 and len(right) == 1:
            result[right[0]] = value[left[0]]
            continue
        flat = merged(propagator, [value[axis] for axis in left], tag=(run, f"merged from {len(left)}"))
        cut = split(propagator, flat, [shape[axis] for axis in right], tag=(run, f"cut into {len(right)}"))
        for axis, dim in zip(right, cut, strict=True):
            result[axis] = dim
    return tuple(result)


def merged(propagator: Propagator, dims: Sequence[Dim], *, tag: object) -> Dim:
    """Axes laid out as one; where several could change, one of them is taken and the others stay whole."""
    size = int(np.prod([dim.size for dim in dims]))
    alive = [axis for axis, dim in enumerate(dims) if dim.labels is not None]
    if not alive:
        return Dim(size)
    axis = alive[0]
    if len(alive) > 1:
        found = propagator.choose(tag, alive, [dim.size for dim in dims])
        if found is None:
            propagator.freeze([dims[each] for each in alive], "is merged with another axis")
            return Dim(size)
        axis = found
        propagator.freeze([dims[other] for other in alive if other != axis], "is merged with another axis")
        propagator.chosen(tag, axis, dims[axis].labels)
    labels = dims[axis].labels
    assert labels is not None
    shape = [1] * len(dims)
    shape[axis] = dims[axis].size
    flat = np.broadcast_to(labels.reshape(shape), [dim.size for dim in dims]).reshape(-1)
    return Dim(size, flat, dims[axis].zero)


def split(propagator: Propagator, dim: Dim, sizes: Sequence[int], *, tag: object) -> list[Dim]:
    """An axis cut into several, of which one can change: its entries go as whole rows or whole columns.

    Args:
        propagator: the state of the propagation.
        dim: the axis.
        sizes: of the axes it becomes.
        tag: tells this cut from others at the same node.
    """
    if len(sizes) == 1:
        return [dim]
    result = [Dim(size) for size in sizes]
    if dim.labels is None:
        return result
    left = [_distinct(dim.labels.reshape(sizes), axis) for axis in range(len(sizes))]
    possible = [axis for axis, units in enumerate(left) if units > 1]
    axis = propagator.choose(tag, possible, left)
    if axis is None:
        propagator.freeze([dim], f"is cut into {tuple(sizes)}, of which nothing can be taken out,")
        return result
    result[axis] = along(propagator, dim, sizes, axis)
    if len(possible) > 1:
        propagator.chosen(tag, axis, result[axis].labels)
    return result


def along(propagator: Propagator, dim: Dim, sizes: Sequence[int], axis: int) -> Dim:
    """The one of the axes that an axis is cut into that can change: its entries go as whole rows or columns.

    Args:
        propagator: the state of the propagation.
        dim: the axis.
        sizes: of the axes it becomes.
        axis: which of them.
    """
    if dim.labels is None:
        return Dim(sizes[axis])
    grid = np.moveaxis(dim.labels.reshape(sizes), axis, 0)
    return Dim(len(grid), rows_joined(propagator, grid.reshape(len(grid), -1)), dim.zero)


def rows_joined(propagator: Propagator, rows: Ints) -> Ints:
    """(rows, entries) labels where each row goes as one: one label for each row."""
    first = np.where((rows == 0).any(axis=1), 0, rows[:, 0])
    if rows.shape[1] > 1:
        why = f"goes with an entry that cannot change at {propagator.where}"
        propagator.labels.join(rows, first[:, None], why)
    return first


def _distinct(grid: Ints, axis: int) -> int:
    rows = np.moveaxis(grid, axis, 0).reshape(grid.shape[axis], -1)
    return int(np.unique(rows.min(axis=1)).size)
