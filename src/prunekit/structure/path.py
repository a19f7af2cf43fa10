"""A graph of operations as one path from the network's input to its output."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from prunekit.errors import ModelError
from prunekit.structure.calls import call_operation, is_size, module_stage, short_name
from prunekit.structure.modules import module_operation, shared_parameters
from prunekit.structure.operations import Kind, Operation
from prunekit.structure.parts import Stage

_MEETINGS = {
    "add": "sum", "iadd": "sum", "add_": "sum", "sub": "difference", "mul": "product", "imul": "product",
    "cat": "concatenation", "concat": "concatenation", "concatenate": "concatenation", "stack": "stack",
}  # fmt: skip


def path_of(graph: fx.Graph, model: nn.Module) -> tuple[Operation, ...]:
    """The operations in order, each with one tensor as its input and one user.

    Raises:
        ModelError: naming the first layer whose output goes elsewhere than to one operation, is used by an
            operation that a chain cannot hold, or that shares its weights.
    """
    walk = _Walk(graph, model)
    operations: list[Operation] = []
    node = walk.start()
    while True:
        node = walk.follow(node)
        if node.op == "output":
            return tuple(operations)
        operations.append(walk.read(node))


def only_layer(model: nn.Module) -> tuple[Operation, ...]:
    """A model that is a single layer, which has no graph to walk; its name is empty.

    Raises:
        ModelError: if it is parametrized, or computes something of its own.
    """
    found = module_operation(model)
    if isinstance(found, str):
        raise ModelError(f"the model ({type(model).__name__}) is no link of a chain: {found}")
    return (Operation(found[0], Stage("", model, model)),)


class _Walk:
    """Follows one tensor; remembers the last layer, since it is the one to name."""

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self._model = model
        self._nodes = list(graph.nodes)
        self._output = self._nodes[-1]
        self._live = _leading_to(self._output)
        self._shared = shared_parameters(model)
        self._layer = ""
        self._visited: set[str] = set()

    def start(self) -> fx.Node:
        inputs = [node for node in self._nodes if node.op == "placeholder" and node in self._live]
        if len(inputs) != 1:
            names = ", ".join(node.name for node in inputs) or "none"
            raise ModelError(f"a chain has one input, the model's output is computed from {names}")
        return inputs[0]

    def follow(self, node: fx.Node) -> fx.Node:
        """The one operation that uses what `node` gives."""
        users = [user for user in node.users if user in self._live and not is_size(user)]
        if len(users) != 1:
            raise self._refused(self._branch(node, users))
        (user,) = users
        others = [source for source in _tensors(user) if source is not node]
        if others:
            raise self._refused(f"its output feeds {self._meeting(user)}")
        if user.op == "output" and user.args[0] is not node:
            raise self._refused("the model returns something other than one tensor")
        return user

    def read(self, node: fx.Node) -> Operation:
        if node.op == "call_module":
            return self._read_module(str(node.target))
        found = call_operation(node)
        if isinstance(found, str):
            raise self._refused(f"its output feeds '{short_name(node)}()', which {found}")
        return found

    def _read_module(self, name: str) -> Operation:
        module = self._model.get_submodule(name)
        found = module_operation(module)
        if isinstance(found, str):
            raise ModelError(f"{name!r} ({type(module).__name__}) is no link of a chain: {found}")
        kind, note = found
        if kind is Kind.LAYER:
            self._layer = name
        if kind in (Kind.LAYER, Kind.NORM):
            self._check_own(name, module)
        return Operation(kind, module_stage(name, module), note)

    def _check_own(self, name: str, module: nn.Module) -> None:
        """Units can only be told by the layer if nothing else reads its weights."""
        if name in self._visited:
            raise ModelError(f"layer {name!r} is no link of a chain: it is used twice")
        self._visited.add(name)
        for short, _ in module.named_parameters(recurse=False):
            other = self._shared.get(f"{name}.{short}")
            if other is None:
                continue
            if self._model.get_submodule(other.rpartition(".")[0]) is module:
                raise ModelError(f"layer {name!r} is no link of a chain: it is used twice, also as {other}")
            raise ModelError(f"layer {name!r} is no link of a chain: its {short} is tied with {other}")

    def _refused(self, why: str) -> ModelError:
        what = f"layer {self._layer!r} is" if self._layer else "the model's input is"
        return ModelError(f"{what} no link of a chain: {why}")

    def _branch(self, node: fx.Node, users: list[fx.Node]) -> str:
        later = self._nodes[self._nodes.index(node) :]
        for meeting in later:
            if meeting not in self._live or meeting is self._output:
                continue
            if len(_tensors(meeting)) > 1 and node in _leading_to(meeting):
                return f"its output feeds {self._meeting(meeting)}"
        return "its output is used twice, by " + " and ".join(self._describe(user) for user in users[:2])

    def _meeting(self, node: fx.Node) -> str:
        """An operation of several tensors, with where the others come from."""
        others = [name for name in map(self._origin, _tensors(node)) if name != repr(self._layer)]
        beside = f" together with {', '.join(dict.fromkeys(others))}" if others else ""
        return self._describe(node) + beside

    def _describe(self, node: fx.Node) -> str:
        if node.op == "output":
            return "the model's output"
        name = short_name(node)
        if node.op == "call_module":
            return repr(name)
        return f"the {_MEETINGS[name]} '{node.name}'" if name in _MEETINGS else f"'{name}()'"

    def _origin(self, node: fx.Node) -> str:
        """The layer whose output a tensor is, seen from behind."""
        while True:
            if node.op == "get_attr":
                return f"the parameter or buffer {str(node.target)!r}"
            if node.op == "placeholder":
                return "the model's input" if not self._layer else f"the input {node.name!r}"
            if node.op == "call_module" and self._is_layer(str(node.target)):
                return repr(str(node.target))
            sources = _tensors(node)
            if len(sources) != 1:
                return self._describe(node)
            (node,) = sources

    def _is_layer(self, name: str) -> bool:
        found = module_operation(self._model.get_submodule(name))
        return not isinstance(found, str) and found[0] is Kind.LAYER


def _tensors(node: fx.Node) -> list[fx.Node]:
    """The tensors that an operation takes, without repetition."""
    return [source for source in node.all_input_nodes if not is_size(source)]


def _leading_to(node: fx.Node) -> set[fx.Node]:
    """Everything that a node is computed from, and the node itself."""
    found: set[Any] = {node}
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in found:
                found.add(source)
                waiting.append(source)
    return found
