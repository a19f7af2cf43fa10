"""A captured graph that can be run again from the nodes on that some units' gains change.

A unit's gain multiplies what is read of it: its columns of the weights that read it, which is the same as the
values that they multiply; and where an operator reads it by itself, as the product of queries and keys does,
one factor of the unit's term. With the gain 0 the network is then the one with the unit's masks.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from prunekit.graph import Coupled
from prunekit.graph.activation_taps import axes_of
from prunekit.graph.branches import BLOCKS, branches_by_unit
from prunekit.graph.captured_graph import (
    Captured,
    attributes_of,
    behind,
    is_view,
    is_written,
    leading_to,
    op_name,
)
from prunekit.graph.coupling_graph import Group, Member
from prunekit.graph.members import entries
from prunekit.graph.ops import indexing, moves, operator_of
from prunekit.losses import one_tensor


@dataclass(frozen=True, eq=False)
class Site:
    """A value of the graph with units along one of its axes, which their gains multiply.

    Attributes:
        source: the node whose value it is.
        users: the nodes that read it with the gains; others read it as it is.
        axis: the axis.
        units: (entries,) int64, the unit of each entry; -1 for none of the group.
    """

    source: fx.Node
    users: frozenset[fx.Node]
    axis: int
    units: Tensor

    def weighted(self, value: Tensor, gains: Tensor) -> Tensor:
        """The value with gains (units,)."""
        every = torch.cat([gains, gains.new_ones(1)]).to(value.dtype)  # the last is for entries of no unit
        shape = [-1 if axis == self.axis else 1 for axis in range(value.dim())]
        return value * every[self.units.to(value.device)].view(shape)


def _judged(graph: Captured) -> int:
    """The place, among all outputs in a row, of the one tensor that units are judged by.

    Raises:
        InputError: if there are several and none of them is called `logits`.
    """
    places = [torch.tensor(place) for place, (kind, _) in enumerate(graph.outputs) if kind == "user"]
    what = "units are judged by one output: wrap the network in a module that gives one"
    return int(one_tensor(pytree.tree_unflatten(places, graph.gives), what))


class Program:
    """The graph of a network in evaluation mode on so many examples; no node changes what it is given.

    Args:
        coupled: the groups.
        graph: as captured on so many examples.
    """

    def __init__(self, coupled: Coupled, graph: Captured):
        (output,) = [node for node in graph.graph.nodes if node.op == "output"]
        self.result: fx.Node = output.args[0][_judged(graph)]
        live = leading_to(self.result)
        self.nodes = [node for node in graph.graph.nodes if node in live]
        self.graph = graph
        self._coupled = coupled
        self._named: dict[str, fx.Node] = {
            name: node for node in self.nodes if (name := graph.tensors.get(node.name)) is not None
        }
        self.given, users = graph.placeholders, set(graph.given)
        self._of_data = dict.fromkeys(node for node in behind(users, self.nodes) if node not in users)
        self.fixed = self._fixed()
        self._suffixes: dict[tuple[str, bool], Suffix] = {}
        self.varying = [node for node in self.nodes if node not in self.fixed]

    def _fixed(self) -> dict[fx.Node, Any]:
        """The values of nodes that depend on no input and no parameter; these may write into each other."""
        varying = set(varying_of(self.graph))
        found: dict[fx.Node, Any] = {}
        for node in self.graph.graph.nodes:
            if node in varying or node.op == "output":
                continue
            if node.op == "placeholder":
                found[node] = self.graph.constants[self.given[node][1]].clone()
            elif node.op == "get_attr":
                found[node] = self.graph.named[str(node.target)]
            else:
                found[node] = called(node, found.__getitem__, in_place=True)
        return found

    def sites(self, name: str, *, masked: bool = False) -> list[Site]:
        """Where a group's gains act.

        Args:
            name: the group's.
            masked: on all of its parameters, which its masks set to zero, not where its units are read.
        """
        group = self._coupled.group(name)
        if group.kind == BLOCKS:
            return list(self._of_branches(group))
        if not masked:
            found = [*self._of_members(group.consumers), *self._of_operators(group)]
            if found:
                return found
        parameters = dict(self._coupled.model.named_parameters())
        return self._of_members([each for each in group.members if each.tensor in parameters], lookups=True)

    def _of_branches(self, group: Group) -> Iterator[Site]:
        """What additions read of the branches of blocks."""
        parameters = dict(self._coupled.model.named_parameters())
        for unit, branch in branches_by_unit(self.graph, group, parameters):
            size = branch.value.meta["val"].shape[0]
            yield Site(branch.value, frozenset([branch.addition]), 0, torch.full((size,), unit))

    def _of_members(self, members: Iterable[Member], *, lookups: bool = False) -> list[Site]:
        found = []
        for member in members:
            node = self._named.get(member.tensor)
            if node is not None:
                looked_up = {user for user in node.users if operator_of(user).labels is indexing.embedding}
                users = set(node.users) - (set() if lookups else looked_up)
                index, unit = entries(member)
                units = torch.full((node.meta["val"].shape[member.dim],), -1)
                units[index] = unit
                found.append(Site(node, frozenset(users), member.dim, units))
        return found

    def _of_operators(self, group: Group) -> list[Site]:
        """What operators read of a group's units by themselves: such units as their results have none of.

        Of a product one factor is multiplied, so that the unit's term is. Statistics over the units, which
        norms and means take, are no part of a gain.
        """
        found, traced = [], self._coupled.traced
        for node in self._of_data:
            record = operator_of(node)
            if node.op != "call_function" or record.moves or is_view(node) or record.over_kept is not None:
                continue
            operands = [(before, axes_of(traced, group, before)) for before in node.all_input_nodes]
            if any(axes and before not in self._of_data for before, axes in operands):
                continue  # by weights
            seen = {unit for units in axes_of(traced, group, node).values() for unit in units.tolist()}
            for before, axes in operands:
                for axis, units in axes.items():
                    own = set(units.tolist()) - seen - {-1}
                    if own:
                        alone = torch.tensor([unit if unit in own else -1 for unit in units.tolist()])
                        found.append(Site(before, frozenset([node]), axis, alone))
                        seen |= own
        return found

    def suffix(self, name: str, *, masked: bool = False) -> Suffix:
        """What has to be run again for other gains of a group; see `sites`."""
        key = name, masked
        if key not in self._suffixes:
            self._suffixes[key] = Suffix(self, self.sites(name, masked=masked))
        return self._suffixes[key]


class Suffix:
    """The nodes that depend on some gains, in order, and when their values are not needed any more.

    Attributes:
        nodes: in order.
        reads: what they read of the other nodes.
        peak: bytes that one variant of their values takes at most, where none is kept for longer than needed.
        total: bytes of all of them.
    """

    def __init__(self, program: Program, sites: Sequence[Site]):
        self._result = program.result
        self.sites = tuple(sites)
        self._at: dict[fx.Node, list[tuple[int, Site]]] = {}
        for number, site in enumerate(sites):
            self._at.setdefault(site.source, []).append((number, site))
        self.nodes = behind(set().union(*(site.users for site in sites)), program.nodes)
        changed = set(self.nodes)
        self.reads = {before for node in self.nodes for before in node.all_input_nodes} - changed
        self._done = read_last(self.nodes, self.reads | {self._result})
        self.peak, self.total = self._peak(), max(1, sum(map(bytes_of, self.nodes)))

    def _peak(self) -> int:
        alive = most = sum(bytes_of(site.source) for site in self.sites)
        for node in self.nodes:
            alive += bytes_of(node)
            most = max(most, alive)
            alive -= sum(bytes_of(before) for before in self._done.get(node, ()))
        return max(most, 1)

    def __call__(self, values: Mapping[fx.Node, Any], gains: Sequence[Tensor]) -> Tensor:
        """The network's output with gains (units,) at each of the sites.

        Args:
            values: of all nodes in `reads`, at gain 1.
            gains: for each site those of its group.
        """
        own: dict[fx.Node, Any] = {}
        weighted: dict[tuple[fx.Node, frozenset[int]], Any] = {}

        def value(user: fx.Node, node: fx.Node) -> Any:
            found = own[node] if node in own else values[node]
            acting = [(number, site) for number, site in self._at.get(node, ()) if user in site.users]
            key = node, frozenset(number for number, _ in acting)
            if acting and key not in weighted:
                for number, site in acting:
                    found = site.weighted(found, gains[number])
                weighted[key] = found
            return weighted[key] if acting else found

        for node in self.nodes:
            own[node] = called(node, partial(value, node))
            for before in self._done.get(node, ()):
                del own[before]
        result: Tensor = own[self._result] if self._result in own else values[self._result]
        return result


def read_last(nodes: Sequence[fx.Node], needed: Collection[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """By node, in order: what nothing reads behind it, and is not needed then either."""
    last = {before: node for node in nodes for before in node.all_input_nodes}
    found: dict[fx.Node, list[fx.Node]] = {}
    for before, node in last.items():
        if before not in needed:
            found.setdefault(node, []).append(before)
    return found


def called(node: fx.Node, value: Callable[[fx.Node], Any], *, in_place: bool = False) -> Any:
    """What a node computes.

    Args:
        node: of the graph.
        value: of a node before it.
        in_place: whether the node may write into what it is given.
    """
    args: Any = fx.node.map_arg(node.args, value)
    kwargs: Any = fx.node.map_arg(node.kwargs, value)
    target: Any = node.target
    inner = next((place for place, arg in enumerate(args) if isinstance(arg, fx.GraphModule)), None)
    if inner is not None:  # such as what is under no_grad
        return args[inner](*args[inner + 1 :])
    if is_written(node) and not in_place:
        target = getattr(getattr(torch.ops.aten, op_name(node)), target._overloadname)
    if target is torch.ops.aten.hardsigmoid.default:  # PyTorch has no second derivative of it
        return F.hardtanh(args[0] + 3, 0.0, 6.0) / 6
    return moves.RESHAPED.get(target, target)(*args, **kwargs)


def varying_of(graph: Captured) -> list[fx.Node]:
    """The nodes that depend on an input or a parameter, in order."""
    first = {node for node, (kind, _) in graph.placeholders.items() if kind != "constant"}
    return [node for node in behind(first, list(graph.graph.nodes)) if node.op != "output"]


def writes_shared(graph: Captured) -> bool:
    """Whether a node writes into memory that other values of the network share: into a view, or under one."""
    for node in varying_of(graph):
        if is_written(node):
            into = node.args[0]
            if is_view(into) or any(is_view(user) for user in into.users):  # type: ignore[arg-type, union-attr]
                return True
    return False


def without_writes(graph: Captured, given: Sequence[Any]) -> Captured:
    """The same graph where every node gives a value of its own; its nodes have other names.

    Args:
        graph: as captured.
        given: values of all of its inputs, for their shapes.
    """
    made = make_fx(torch.func.functionalize(graph.module), tracing_mode="fake")(*given)
    return replace(graph, graph=made.graph, named=attributes_of(made.graph, made))


def bytes_of(node: fx.Node) -> int:
    """The memory of a node's own value, and of what computes it; 0 for a view."""
    if is_view(node):
        return 0
    value = node.meta.get("val")
    tensors = list(value) if isinstance(value, list | tuple) else [value]
    found = sum(each.numel() * each.element_size() for each in tensors if isinstance(each, Tensor))
    if op_name(node) == "scaled_dot_product_attention":  # it is written out: scores, and their softmax
        query, key = (operand.meta["val"] for operand in node.all_input_nodes[:2])
        found += 2 * query.numel() // query.shape[-1] * key.shape[-2] * query.element_size()
    return found
