"""Residual branches: what an addition adds to a value that it was computed from, found in the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs, arguments
from prunekit.errors import ModelError, explaining
from prunekit.graph.capture import captured_in, tensors_of
from prunekit.graph.captured_graph import (
    Captured,
    argument,
    behind,
    is_written,
    leading_to,
    module_of,
    op_name,
    shape_of,
)
from prunekit.graph.coupling_graph import Group, Member
from prunekit.graph.other_inputs import drawn
from prunekit.graph.reference_run import Interpreter
from prunekit.modes import evaluating

BLOCKS = "blocks"
"""The name of the group of blocks, and its kind."""


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch of a graph: x + f(x) is x without it.

    Attributes:
        name: the module that calls the addition; where it calls several, a module of the branch in it.
        shortcut: the node of x.
        value: that of f(x), which only the addition reads.
        addition: that of their sum.
        nodes: all that is computed, or read of the network, for f(x) alone, in order.
        tensors: the full names of the parameters and buffers among them.
    """

    name: str
    shortcut: fx.Node
    value: fx.Node
    addition: fx.Node
    nodes: tuple[fx.Node, ...]
    tensors: tuple[str, ...]

    def __deepcopy__(self, memo: Any) -> Branch:
        """Itself, as its graph, since nothing of it changes."""
        return self

    @property
    def within(self) -> str:
        """The module that calls the addition; empty for the network itself."""
        return module_of(self.addition)


@dataclass(frozen=True)
class Branches:
    """Residual branches that go together.

    Attributes:
        name: of the branch, or of the module that the branches are in.
        branches: in order.
    """

    name: str
    branches: tuple[Branch, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        """The parameters and buffers of the branches."""
        return tuple(dict.fromkeys(name for branch in self.branches for name in branch.tensors))


def branches_of(graph: Captured, parameters: Collection[str]) -> tuple[Branch, ...]:
    """The residual branches of a graph by its form, in order; those that have others within are left out.

    Args:
        graph: as captured.
        parameters: the full names of the network's parameters, of which a branch has some for itself.
    """
    nodes = list(graph.graph.nodes)
    of_data, unread = set(behind(set(graph.given), nodes)), unread_of(graph)
    found = []
    for place, addition in enumerate(nodes):
        pair = _added(addition) if addition in of_data else None
        for value, shortcut in (pair, pair[::-1]) if pair else ():
            if of_data.issuperset(pair or ()) and value is not shortcut and shortcut in leading_to(value):
                own = _for_alone(graph, value, addition, nodes[:place], unread)
                tensors = tuple(graph.tensors[node.name] for node in own if node.name in graph.tensors)
                if any(name in parameters for name in tensors):
                    found.append(Branch("", shortcut, value, addition, own, tensors))
    additions = {branch.addition for branch in found}
    return tuple(_named([branch for branch in found if additions.isdisjoint(branch.nodes)]))


def _added(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """The two values of one shape that a node adds up; None where it does something else."""
    if node.op != "call_function" or op_name(node) != "add" or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or argument(node, "alpha") != 1:
        return None
    values = [each.meta.get("val") for each in (first, second, node)]
    if not all(isinstance(value, Tensor) for value in values):
        return None
    return (first, second) if shape_of(first) == shape_of(second) == shape_of(node) else None


def _for_alone(
    graph: Captured,
    value: fx.Node,
    addition: fx.Node,
    before: Sequence[fx.Node],
    unread: Collection[fx.Node],
) -> tuple[fx.Node, ...]:
    """The nodes that nothing but the value of an addition is computed from; none where others read it."""
    found: set[fx.Node] = set()
    for node in reversed(before):
        readers = [each for each in _readers(graph, node) if each not in unread]
        alone = readers == [addition] if node is value else all(each in found for each in readers)
        if readers and alone:
            found.add(node)
        elif node is value:
            return ()
    return tuple(node for node in before if node in found)


def _readers(graph: Captured, node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that read a value; where its statistics are written back to a buffer, that is no reading."""
    for user in node.users:
        if user.op != "output":
            yield user
            continue
        every: Any = user.args[0]
        if any(
            each is node and kind != "buffer" for each, (kind, _) in zip(every, graph.outputs, strict=True)
        ):
            yield user


def unread_of(graph: Captured) -> set[fx.Node]:
    """The nodes whose results nothing needs, such as checks of sizes."""
    found: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if node.op == "call_function" and not is_written(node) and all(user in found for user in node.users):
            found.add(node)
    return found


def _named(branches: Sequence[Branch]) -> list[Branch]:
    count = Counter(branch.within for branch in branches)
    names = [
        branch.within if branch.within and count[branch.within] == 1 else _inner(branch)
        for branch in branches
    ]
    seen: Counter[str] = Counter()
    found = []
    for branch, name in zip(branches, names, strict=True):
        seen[name] += 1
        found.append(replace(branch, name=name if seen[name] == 1 else f"{name} {seen[name]}"))
    return found


def _inner(branch: Branch) -> str:
    """The outermost module in that of the addition that the end of the branch is computed in."""
    own = f"{branch.within}." if branch.within else ""
    for node in reversed(branch.nodes):
        for name in modules_of(node):
            if name.startswith(own) and name != own:
                return name
    return branch.within or "branch"


def modules_of(node: fx.Node) -> list[str]:
    """The full names of the modules that call a node, the outermost first, without the network itself."""
    return [str(name) for name, *_ in (node.meta.get("nn_module_stack") or {}).values() if name]


def residual_blocks(
    model: nn.Module, graph: Captured, example_inputs: Inputs, *, whole: bool = False
) -> tuple[Branches, ...]:
    """The residual branches of a network that leave the identity when they go, in order.

    With all of its own parameters zero a branch must give zeros, on random inputs of the form of the example.

    Args:
        model: the network.
        graph: of it, in evaluation mode.
        example_inputs: those that it was captured with.
        whole: whether the branches of one element of an `nn.Sequential` or `nn.ModuleList` are one block, as
            attention and MLP of a transformer's.

    Raises:
        ModelError: if there is none.
    """
    own = {name for name, _ in model.named_parameters()}
    branches = _silenced(model, graph, example_inputs, branches_of(graph, own))
    if not branches:
        raise ModelError(
            "the model has no residual branch: no addition of it adds to a value, as it is, what is computed "
            "from that by parameters of its own"
        )
    together: dict[str, list[Branch]] = {}
    for branch in branches:
        name = _element(model, branch.within) if whole else None
        together.setdefault(name or branch.name, []).append(branch)
    return tuple(Branches(name, tuple(each)) for name, each in together.items())


def _element(model: nn.Module, name: str) -> str | None:
    """The innermost element of a list or sequence of modules that a module is, or is in."""
    while name:
        place, _, _ = name.rpartition(".")
        if isinstance(model.get_submodule(place), nn.Sequential | nn.ModuleList):
            return name
        name = place
    return None


class _Silence(Interpreter):
    """Runs a graph and sees which branches give nothing but zeros."""

    def __init__(self, module: fx.GraphModule, branches: Sequence[Branch]) -> None:
        super().__init__(module)
        self._values = {branch.addition.name: branch.value.name for branch in branches}
        self.silent: set[str] = set()

    def run_node(self, node: fx.Node) -> object:
        """Look at what is added before it is: additions may write into it."""
        if node.name in self._values:
            value = next(each for each in node.all_input_nodes if each.name == self._values[node.name])
            if not bool((self.env[value] != 0).any()):
                self.silent.add(node.name)
        return super().run_node(node)


@torch.no_grad()
def _silenced(
    model: nn.Module, graph: Captured, example_inputs: Inputs, branches: Sequence[Branch]
) -> list[Branch]:
    parameters, tensors = dict(model.named_parameters()), tensors_of(model)
    off = {
        name for branch in branches for name in branch.tensors if name in parameters and tensors[name].dim()
    }
    args, kwargs = drawn(arguments(example_inputs))
    user = iter(graph.flattened(args, kwargs))

    def value(node: fx.Node) -> object:
        kind, name = graph.placeholders[node]
        if kind == "user":
            return next(user)
        if kind == "constant":
            return graph.constants[name].clone()
        tensor = tensors[name].detach()
        return torch.zeros_like(tensor) if name in off else tensor

    run = _Silence(graph.module, branches)
    with evaluating(model), explaining(ModelError, lambda: "the network cannot run on the example inputs"):
        run.run(*[value(node) for node in graph.placeholders])
    return [branch for branch in branches if branch.addition.name in run.silent]


def captured_blocks(
    model: nn.Module, example_inputs: Inputs, *, whole: bool = False
) -> tuple[Captured, tuple[Branches, ...]]:
    """The graph of a network in evaluation mode, and its blocks; see `residual_blocks`.

    Raises:
        InputError, ModelError: as `captured` and `residual_blocks`.
    """
    graph = captured_in(model, example_inputs, "eval")
    return graph, residual_blocks(model, graph, example_inputs, whole=whole)


def group_of(model: nn.Module, blocks: Sequence[Branches]) -> Group:
    """Blocks as the units of one group: each with all parameters and buffers that are its own.

    Matrices and kernels make a block; biases, scales and buffers go along with it.
    """
    tensors = tensors_of(model)
    members = []
    for number, block in enumerate(blocks):
        own = {name: tensors[name] for name in block.tensors if tensors[name].dim()}
        most = max(tensor.dim() for tensor in own.values() if isinstance(tensor, nn.Parameter))
        for name, tensor in own.items():
            every = tuple(range(len(tensor)))
            indices = tuple(every if unit == number else () for unit in range(len(blocks)))
            makes = isinstance(tensor, nn.Parameter) and tensor.dim() >= min(2, most)
            members.append(Member(name, 0, indices, "producer" if makes else "along"))
    return Group(BLOCKS, BLOCKS, len(blocks), tuple(members))


def branches_by_unit(
    graph: Captured, group: Group, parameters: Mapping[str, object]
) -> Iterator[tuple[int, Branch]]:
    """The branches of a graph that belong to a group of blocks, each with its block's number, in order.

    Args:
        graph: of the network whose group it is, on any number of examples, in either mode.
        group: as `group_of` gave it.
        parameters: of the network, by full name.
    """
    unit_of = {
        member.tensor: unit for member in group.members for unit, each in enumerate(member.indices) if each
    }
    for branch in branches_of(graph, parameters.keys()):
        units = {unit_of[name] for name in branch.tensors if name in unit_of}
        if len(units) == 1:
            yield units.pop(), branch
