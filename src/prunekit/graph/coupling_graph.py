"""What is coupled in a network, as data: groups, members and features, and the graphs they are read from."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunekit.display import Displayed
from prunekit.errors import InputError
from prunekit.graph.captured_graph import Captured, leading_to, op_name
from prunekit.graph.labels import Dim, Flags, Ints, Role, Value, fixed

INPUT = "input"
"""The name of the group of the network's own input features."""


@dataclass(frozen=True)
class Member:
    """One dimension of one parameter or buffer, and which of its entries go with which unit.

    Attributes:
        tensor: full name of the parameter or buffer, the first one if it is tied.
        dim: the dimension that gets shorter.
        indices: for each unit of the group its entries along `dim`; empty where a unit has none here.
        role: "producer" where the entries compute the unit, "consumer" where they read it, "divisor" where
            the unit is divided by them, which must not be zero while it is there, "along" for what
            goes with it entry by entry: biases, norms, buffers, embeddings.
    """

    tensor: str
    dim: int
    indices: tuple[tuple[int, ...], ...]
    role: Role


@dataclass(frozen=True)
class Group(Displayed):
    """Units that can be taken out one by one, each with everything that has to go with it.

    Attributes:
        name: the first module that produces the units, with the kind where two groups share it.
        kind: "filters", "neurons", "heads", "head width", "MLP width", "residual stream", "embedding", "input
            features".
        units: how many there are.
        members: the slices of parameters and buffers that go with the units.
        frozen: why no unit can be taken out; None where they can.
        normalised: norms and means whose statistics run over the units; without the units these are the
            statistics of the kept entries, so the reference is the masked network with the same.
    """

    name: str
    kind: str
    units: int
    members: tuple[Member, ...]
    frozen: str | None = None
    normalised: tuple[str, ...] = ()

    def __repr__(self) -> str:
        stays = "" if self.frozen is None else f", stays: {self.frozen}"
        units = f"{self.units:,} units ({self.kind}) in {len(self.members)} tensors"
        return f"<Group {self.name}: {units}{stays}>"

    @property
    def producers(self) -> tuple[Member, ...]:
        """The members that make the units; all of them where none is known to."""
        return tuple(member for member in self.members if member.role == "producer") or self.members

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members that read the units."""
        return tuple(member for member in self.members if member.role == "consumer")


@dataclass(frozen=True)
class GroupPlan(Displayed):
    """All groups of a network, those that cannot be pruned with their reason."""

    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        return f"<GroupPlan: {len(self.prunable):,} groups can lose units, {len(self.frozen):,} stay>"

    def __str__(self) -> str:
        return self.table()

    @property
    def prunable(self) -> tuple[Group, ...]:
        """The groups whose units can be taken out."""
        return tuple(group for group in self.groups if group.frozen is None)

    @property
    def frozen(self) -> dict[str, str]:
        """Why the other groups stay as they are, by name."""
        return {group.name: group.frozen for group in self.groups if group.frozen is not None}

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            InputError: where there is none, with the names there are.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = ", ".join(repr(group.name) for group in self.groups)
        raise InputError(f"no group is named {name!r}; there are {names or 'none'}")

    def table(self) -> str:
        """Name, kind, units, members and a remark for each group, in columns."""
        lines = [("group", "kind", "units", "members", "remark")]
        for group in self.groups:
            counts = str(group.units), str(len(group.members))
            lines.append((group.name, group.kind, *counts, _remark(group)))
        widths = [max(len(line[column]) for line in lines) for column in range(4)]
        return "\n".join(
            "  ".join(
                [*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]
            ).rstrip()
            for line in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as what JSON can hold."""
        return {"groups": [asdict(group) for group in self.groups]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> GroupPlan:
        """The plan that `to_dict` wrote, also after it went through JSON.

        Raises:
            InputError: where a field is missing or unknown.
        """
        try:
            return cls(tuple(_group(item) for item in data["groups"]))
        except (KeyError, TypeError) as error:
            raise InputError(f"this is no plan of coupled groups: {error}") from error


def _group(item: dict[str, Any]) -> Group:
    members = tuple(
        Member(**{**member, "indices": tuple(tuple(unit) for unit in member["indices"])})
        for member in item["members"]
    )
    return Group(**{**item, "members": members, "normalised": tuple(item["normalised"])})


def _remark(group: Group) -> str:
    if group.frozen is not None:
        return f"stays: {group.frozen}"
    if group.normalised:
        return "statistics over kept entries: " + ", ".join(group.normalised)
    return ""


_SHAPING = frozenset({"flatten", "view", "reshape", "_unsafe_view"})


@dataclass(frozen=True)
class Features:
    """What one feature of the input is.

    Attributes:
        axis: of the input, along which features lie; None where the network lays out each example as one row
            of numbers, which are the features then.
        size: how many there are.
    """

    axis: int | None
    size: int

    def known(self, graph: Captured, labels: Ints) -> dict[fx.Node, Value]:
        """Labels for the node of a graph that holds the features.

        Args:
            graph: of the network that these are the features of.
            labels: (size,) one for each feature.
        """
        node = _input_of(graph)
        assert node is not None
        if self.axis is None:
            node = _rows(node)
            assert node is not None
        dims = list(fixed(node.meta["val"].shape))
        dims[1 if self.axis is None else self.axis] = Dim(self.size, labels)
        return {node: tuple(dims)}

    def narrowed(self, inputs: Tensor, kept: Tensor) -> Tensor:
        """Inputs with some features only.

        Args:
            inputs: as the whole network takes them.
            kept: (size,) flags, True = kept.
        """
        index = kept.nonzero().flatten().to(inputs.device)
        if self.axis is None:
            return inputs.flatten(1).index_select(1, index)
        return inputs.index_select(self.axis, index)


def features_of(graph: Captured) -> Iterator[Features]:
    """What the features of a network's only input of real numbers may be, the likeliest first.

    The numbers of a row, where the network lays its input out as rows; else what lies along the second axis,
    as the channels of images do, or along the last.
    """
    node = _input_of(graph)
    if node is None:
        return
    shape = node.meta["val"].shape
    rows = _rows(node)
    if rows is not None:
        yield Features(None, int(rows.meta["val"].shape[1]))
    for axis in dict.fromkeys((1, len(shape) - 1)):
        if shape[axis] > 1:
            yield Features(axis, int(shape[axis]))


def _input_of(graph: Captured) -> fx.Node | None:
    """The only input of real numbers with a batch that the output depends on."""
    live = leading_to(list(graph.graph.nodes)[-1])
    found = [node for node in graph.given if node in live and isinstance(node.meta.get("val"), torch.Tensor)]
    if len(found) != 1 or not found[0].meta["val"].is_floating_point() or found[0].meta["val"].dim() < 2:
        return None
    return found[0]


def _rows(node: fx.Node) -> fx.Node | None:
    """The input as rows of numbers, where the network lays it out so before it computes with it."""
    whole = node.meta["val"].shape
    while len(users := list(node.users)) == 1 and len(users[0].all_input_nodes) == 1:
        (node,) = users
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor) or value.numel() != whole.numel():
            return None
        if op_name(node) in _SHAPING and tuple(value.shape) == (whole[0], whole[1:].numel()):
            return node if len(whole) > 2 else None
    return None


@dataclass(frozen=True)
class Labelling:
    """The labels of one analysis, and the group and unit that each stands for.

    Attributes:
        nodes: for each graph, by node, the labels of the axes of each of its values.
        group: (labels,) number of the plan's group, -1 for none.
        unit: (labels,) number of the unit within the group.
    """

    nodes: tuple[dict[str, tuple[tuple[Ints | None, ...], ...]], ...]
    group: Ints
    unit: Ints


@dataclass(frozen=True)
class KeepMasks:
    """What stays of every node's axes once some units are taken out.

    Attributes:
        labellings: of the plan.
        gone: for each of them (labels,) which are taken out.
    """

    labellings: tuple[Labelling, ...]
    gone: tuple[Flags, ...]

    def __call__(self, graph: int, node: str) -> tuple[tuple[Flags | None, ...], ...]:
        """Which entries of each axis of each value of a node stay; None where all do.

        Args:
            graph: number of the graph.
            node: name of the node; in a graph that a node calls, that node's name and "/" before it.
        """
        found: list[list[Flags | None]] = []
        for labelling, gone in zip(self.labellings, self.gone, strict=True):
            for number, axes in enumerate(labelling.nodes[graph].get(node, ())):
                if number == len(found):
                    found.append([None] * len(axes))
                for axis, labels in enumerate(axes):
                    if labels is not None and gone[labels].any():
                        stays, before = ~gone[labels], found[number][axis]
                        found[number][axis] = stays if before is None else before & stays
        return tuple(tuple(axes) for axes in found)


@dataclass(frozen=True)
class CouplingGraph(Displayed):
    """A plan with the graphs it was read from.

    Attributes:
        plan: the groups.
        graphs: in evaluation mode, then in training mode.
        labellings: one for each analysis: an axis keeps what all of them keep.
        features: what the units of the group `input` are; None where there is no such group.
    """

    plan: GroupPlan
    graphs: tuple[Captured, ...]
    labellings: tuple[Labelling, ...]
    features: Features | None = None

    def __repr__(self) -> str:
        return f"<CouplingGraph of {repr(self.plan)[1:]}"

    def __str__(self) -> str:
        return str(self.plan)

    def out_of_sight(self, model: nn.Module) -> set[str]:
        """The names of the groups that parameters may belong to which no graph reads, by the sizes of these.

        Such are those of a second head that the example inputs do not ask for. Of what it computes nothing is
        known, and no proof on these inputs tells.

        Args:
            model: the network, without wrappers.
        """
        read = {
            name
            for graph in self.graphs
            for node, (kind, name) in graph.placeholders.items()
            if kind == "tensor" and node.users
        }
        sides = {side for name, each in model.named_parameters() if name not in read for side in each.shape}
        return {
            group.name for group in self.plan.groups if any(side % group.units == 0 for side in sides if side)
        }

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
            flags[np.where(labelling.group >= 0, starts[labelling.group] + labelling.unit, -1)]
            for labelling in self.labellings
        )
        return KeepMasks(self.labellings, gone)
