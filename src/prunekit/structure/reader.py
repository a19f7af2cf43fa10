"""A network read symbolically, with torch.fx, as a path of operations; nothing of it is run."""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import UninitializedParameter

from prunekit.errors import ModelError
from prunekit.graph.captured import leading_to
from prunekit.messages import first_line
from prunekit.modes import evaluating
from prunekit.structure.calls import LayerReader, call_operation, is_size, module_stage, short_name
from prunekit.structure.chain import Chain, Stage
from prunekit.structure.linking import link
from prunekit.structure.operations import Kind, Operation, is_leaf, module_operation
from prunekit.targets import unwrap


def chain_of(model: nn.Module, *, inputs: bool = False) -> Chain:
    """Read a network as a chain, as it computes in evaluation mode.

    The network is traced symbolically: it is not run, its hooks are not called and it is left as it was.
    Linear layers are taken to read (N, features), or (N, ..., features) where no batch norm follows.

    Args:
        model: linear, convolution, batch norm, pooling, flatten, activation and dropout layers in a row, as
            modules or as functions in `forward`; wrappers of `torch.compile` and DDP are looked through.
        inputs: whether the network's input features are a group too.

    Raises:
        ModelError: naming the first layer that is no link of a chain, such as one that feeds a residual sum,
            or the line of `forward` that cannot be traced.
    """
    model = unwrap(model)
    operations = only_layer(model) if is_leaf(model) else path_of(trace(model), model)
    return link(operations, inputs=inputs)


def is_chain(model: nn.Module) -> bool:
    """Whether a network can be read as a chain of layers."""
    try:
        chain_of(model)
    except ModelError:
        return False
    return True


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
    """Follows one tensor from operation to operation."""

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self._model = model
        self._nodes = list(graph.nodes)
        self._output = self._nodes[-1]
        self._live = leading_to(self._output)
        self._layers = LayerReader(model)

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
            raise self._layers.refused(self._branch(node, users))
        (user,) = users
        others = [source for source in _tensors(user) if source is not node]
        if others:
            raise self._layers.refused(f"its output feeds {self._meeting(user)}")
        if user.op == "output" and user.args[0] is not node:
            raise self._layers.refused("the model returns something other than one tensor")
        return user

    def read(self, node: fx.Node) -> Operation:
        if node.op == "call_module":
            return self._layers.read(str(node.target))
        found = call_operation(node)
        if isinstance(found, str):
            raise self._layers.refused(f"its output feeds '{short_name(node)}()', which {found}")
        return found

    def _branch(self, node: fx.Node, users: list[fx.Node]) -> str:
        later = self._nodes[self._nodes.index(node) :]
        for meeting in later:
            if meeting not in self._live or meeting is self._output:
                continue
            if len(_tensors(meeting)) > 1 and node in leading_to(meeting):
                return f"its output feeds {self._meeting(meeting)}"
        return "its output is used twice, by " + " and ".join(self._describe(user) for user in users[:2])

    def _meeting(self, node: fx.Node) -> str:
        """An operation of several tensors, with where the others come from."""
        others = [name for name in map(self._origin, _tensors(node)) if name != repr(self._layers.layer)]
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
                return "the model's input" if not self._layers.layer else f"the input {node.name!r}"
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


def trace(model: nn.Module) -> fx.Graph:
    """The operations that `forward` performs in evaluation mode; arguments with a default take it.

    Raises:
        ModelError: naming the line of `forward` that cannot be traced, such as an `if` on the data.
    """
    for name, parameter in model.named_parameters():
        if isinstance(parameter, UninitializedParameter):
            raise ModelError(f"{name} has no shape yet: run the model once on an example first")
    defaults = {
        name: argument.default
        for name, argument in inspect.signature(model.forward).parameters.items()
        if argument.default is not inspect.Parameter.empty
    }
    with _untouched(model), evaluating(model):
        try:
            return _Tracer().trace(model, concrete_args=defaults or None)
        except Exception as error:  # whatever the user's forward makes of a symbol
            raise ModelError(
                f"the model cannot be read as a chain: its forward is not traceable{_place(error)} "
                f"({first_line(error)})"
            ) from error


class _Tracer(fx.Tracer):
    """Stops at PyTorch's own layers and at their subclasses, and calls no hooks."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # `forward` would be the module's whole call: a user's hooks are not to see symbols
        return super().call_module(m, m.forward, args, kwargs)


@contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put all attributes back: a forward may store symbols in them, and the tracer its constants."""
    before = [(module, dict(vars(module))) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            vars(module).update(attributes)


def _place(error: Exception) -> str:
    """The last line of the user's code that ran, such as ` at net.py:12, 'if x.sum() > 0:'`."""
    inside = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((*inside, "<")) and frame.lineno is not None:
            text = (frame.line or linecache.getline(frame.filename, frame.lineno)).strip()
            return f" at {Path(frame.filename).name}:{frame.lineno}, {text!r}"
    return ""


Function = Callable[[Tensor], Tensor]


def activations(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, Function]:
    """For each layer, by a name of the caller's, a function from its outputs to its neurons' activations.

    It is made of the batch norms and pointwise functions directly behind the layer, and ends where a pooling,
    another layer or a sum takes over. Where the outputs go several ways, the layer is called several times or
    `forward` cannot be traced, the outputs themselves are taken for the activations. The functions change
    nothing of what they are given.
    """
    try:
        graph = trace(model)
    except ModelError:
        return dict.fromkeys(layers, _same)
    calls: dict[nn.Module, list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls.setdefault(model.get_submodule(str(node.target)), []).append(node)
    found = {}
    for name, layer in layers.items():
        nodes = calls.get(layer, [])
        found[name] = _behind(model, nodes[0]) if len(nodes) == 1 else _same
    return found


def _behind(model: nn.Module, node: fx.Node) -> Function:
    stages: list[Stage] = []
    while True:
        users = [user for user in node.users if not is_size(user)]
        stage = _stage(model, node, users[0]) if len(users) == 1 else None
        if stage is None:
            return _through(stages)
        stages.append(stage)
        node = users[0]


def _stage(model: nn.Module, node: fx.Node, user: fx.Node) -> Stage | None:
    """The batch norm or pointwise function that uses a node alone; None for anything else."""
    if user.op == "output" or any(one is not node for one in user.all_input_nodes if not is_size(one)):
        return None
    if user.op == "call_module":
        module = model.get_submodule(str(user.target))
        read = module_operation(module)
        fits = not isinstance(read, str) and read[0] in (Kind.NORM, Kind.POINTWISE)
        return module_stage(str(user.target), module) if fits else None
    operation = call_operation(user)
    fits = not isinstance(operation, str) and operation.kind is Kind.POINTWISE
    return operation.stage if fits and not isinstance(operation, str) else None


def _through(stages: list[Stage]) -> Function:
    def run(x: Tensor) -> Tensor:
        for stage in stages:
            x = stage.run(x)
        return x

    return run


def _same(x: Tensor) -> Tensor:
    return x
