"""A chain of layers read from a network's captured graph: for what can be computed faster on a path.

A tensor that everything behind it depends on alone is a joint. Between one joint and the next lies one
operation: one call of a layer, one operator, or several pointwise operators, such as x + x^3.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs
from prunekit.errors import ModelError
from prunekit.graph.capture import captured_in, made_up_inputs
from prunekit.graph.captured_graph import Captured, behind, leading_to, op_name
from prunekit.graph.chain import NORMS, Chain, Function, Kind, Stage, linked, oddity, sees_entries, stage_of
from prunekit.graph.coupling_graph import CouplingGraph
from prunekit.graph.plan import traced
from prunekit.graph.rows import LAYERS
from prunekit.targets import check_shaped, unwrap

_MEETINGS = {"add": "sum", "sub": "difference", "mul": "product", "cat": "concatenation", "stack": "stack"}


def chain_of(model: nn.Module, example_inputs: Inputs | None = None, *, inputs: bool = False) -> Chain:
    """The chain of layers that a network is, as it computes in evaluation mode; it is left as it was.

    Linear layers are taken to read (N, features), or (N, ..., features) where no batch norm follows.

    Args:
        model: linear, convolution, batch norm, pooling, flatten, activation and dropout layers in a row, as
            modules or as functions in `forward`; wrappers of `torch.compile` and DDP are looked through.
        example_inputs: inputs that it takes, in any precision; without them some are made up of the shape
            that its first layer reads.
        inputs: whether the network's input features are a group too.

    Raises:
        InputError: where the example inputs are of no usable kind or do not fit the network's arguments.
        ModelError: naming the first layer that is no link of a chain, such as one that feeds a residual sum,
            or the line of `forward` that no graph can hold.
    """
    model = unwrap(model)
    check_shaped(model)
    if not any(isinstance(module, LAYERS) for module in model.modules()):
        raise ModelError("the model has no linear or convolution layer")
    if example_inputs is None:
        example_inputs = made_up_inputs(model)
    precision = {parameter.dtype for parameter in model.parameters()}
    if isinstance(example_inputs, Tensor) and example_inputs.is_floating_point() and len(precision) == 1:
        example_inputs = torch.empty_like(example_inputs, dtype=precision.pop())  # no values are looked at
    return chain_view(model, traced(model, example_inputs, residual=True, inputs=inputs), inputs=inputs)


def chain_view(model: nn.Module, found: CouplingGraph, *, inputs: bool = False) -> Chain:
    """The chain that a captured graph is.

    Args:
        model: the network, without wrappers.
        found: its plan with its graphs.
        inputs: whether the network's input features are a group, too.

    Raises:
        ModelError: naming the first layer that is no link of a chain, with the reason.
    """
    graph = found.graphs[0]
    stages = list(_PathReader(model, graph, [_input(model, graph)]).stages())
    return linked(stages, found.plan, inputs=inputs)


def activations(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Inputs
) -> dict[str, Function]:
    """For each layer, by a name of the caller's, a function from its outputs to its neurons' activations.

    It is made of the batch norms and pointwise operators directly behind the layer, and ends where a pooling,
    another layer or a sum takes over. Where the outputs go several ways, the layer is called several times or
    the network has no graph, the outputs themselves are taken for the activations. The functions change
    nothing of what they are given.
    """
    try:
        graph = captured_in(model, example_inputs, "eval")
    except ModelError:
        return dict.fromkeys(layers, _in_a_row(()))
    reader = _PathReader(model, graph, _given(graph))
    return {name: _in_a_row(reader.behind(layer)) for name, layer in layers.items()}


def _in_a_row(stages: Sequence[Stage]) -> Function:
    def run(x: Tensor) -> Tensor:
        for stage in stages:
            x = stage.run(x)
        return x

    return run


@dataclass
class _Stretch:
    """One call of a layer, with all its operators, or one operator."""

    nodes: list[fx.Node]
    layer: str | None


class _PathReader:
    """Follows one tensor from joint to joint.

    Attributes:
        layer: the last one that mixes units, which is the one to name; empty before the first.
    """

    def __init__(self, model: nn.Module, graph: Captured, entries: Sequence[fx.Node]) -> None:
        self.layer = ""
        self._model, self._graph = model, graph
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._shared = shared_parameters(model)
        self._visited: set[str] = set()
        self._output = list(graph.graph.nodes)[-1]
        self._entries = entries
        live = leading_to(self._output)
        self._flowing = set(behind(entries, [node for node in graph.graph.nodes if node in live]))
        self._steps = self._found()
        self._at = {node: place for place, step in enumerate(self._steps) for node in step.nodes}

    def stages(self) -> Iterator[Stage]:
        """The operations in order, each as soon as it is read.

        Raises:
            ModelError: naming the first layer whose output goes elsewhere than to one operation, is used by
                an operation that a chain cannot hold, or that shares its weights.
        """
        steps, (before,) = self._steps, self._entries

        def reach_of(nodes: Sequence[fx.Node]) -> int:
            """The last step that uses one of the nodes."""
            users = (user for node in nodes for user in self._users(node))
            return max((self._at.get(user, len(steps)) for user in users), default=0)

        start, reach = 0, reach_of([before])
        for place, step in enumerate(steps):
            if reach > place:  # something from before is used behind this step, too
                reach = max(reach, reach_of(step.nodes))
                continue
            yield self._own(self._read(before, steps[start : place + 1]))
            before, start, reach = self._left(step, place), place + 1, reach_of(step.nodes)
        if start < len(steps):
            raise self._refused(self._branch(before))
        if not self._graph.gives.is_leaf():
            raise self._refused("the model returns something other than one tensor")

    def behind(self, layer: nn.Module) -> list[Stage]:
        """The batch norms and pointwise operations in a row directly behind the one call of a layer."""
        calls = [step for step in self._steps if step.layer and self._modules[step.layer] is layer]
        found: list[Stage] = []
        if len(calls) != 1:
            return found
        left = self._left(calls[0], self._at[calls[0].nodes[0]])
        with suppress(ModelError):
            for stage in _PathReader(self._model, self._graph, [left]).stages():
                if stage.kind not in (Kind.NORM, Kind.POINTWISE):
                    break
                found.append(stage)
        return found

    def _found(self) -> list[_Stretch]:
        """The operators that the inputs flow through, those of one call of a layer together."""
        steps: list[_Stretch] = []
        calls: dict[Any, _Stretch] = {}
        for node in self._graph.graph.nodes:
            if node not in self._flowing or node is self._output or node in self._entries:
                continue
            call, layer = self._owner(node)
            # one of several values is part of the operator that gives them
            key = call or (node.args[0] if node.target is operator.getitem else node)
            if key in calls:
                calls[key].nodes.append(node)
                continue
            steps.append(_Stretch([node], layer))
            calls[key] = steps[-1]
        return steps

    def _owner(self, node: fx.Node) -> tuple[str, str | None]:
        """The outermost call of a layer that a node is part of, and the layer; nothing for an operator."""
        for call, entry in (node.meta.get("nn_module_stack") or {}).items():
            name = str(entry[0])
            module = self._modules.get(name)
            if module is None or (not name and any(True for _ in module.children())):
                continue
            if _is_whole(module):
                return str(call), name
        return "", None

    def _users(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if user in self._flowing or user is self._output]

    def _left(self, step: _Stretch, place: int) -> fx.Node:
        """The node of a step whose value is used behind it."""
        return next(
            n for n in reversed(step.nodes) if any(self._at.get(u, -1) != place for u in self._users(n))
        )

    def _read(self, before: fx.Node, steps: Sequence[_Stretch]) -> Stage:
        """What happens between two joints.

        Raises:
            ModelError: if a chain cannot hold it.
        """
        nodes = [node for step in steps for node in step.nodes]
        name = steps[0].layer if len(steps) == 1 else None
        module = None if name is None else self._modules[name]
        if module is not None:
            why = oddity(module)
            if why:
                raise ModelError(f"{name!r} ({type(module).__name__}) is no link of a chain: {why}")
        elif len(steps) > 1 and not all(map(sees_entries, nodes)):
            raise self._refused(self._branch(before))
        else:
            for node in nodes:
                if any(other not in self._flowing for other in node.all_input_nodes):
                    raise self._refused(f"its output feeds {self._meeting(node)}")
        found = stage_of(nodes, before, name, module)
        if isinstance(found, str):
            what = f"{op_name(nodes[0])}()" if name is None else name
            raise self._refused(f"its output feeds {what!r}, which {found}")
        return found

    def _own(self, stage: Stage) -> Stage:
        """The stage; units can only be told by a layer if nothing else reads its weights.

        Raises:
            ModelError: if something does.
        """
        name, module = stage.name, stage.module
        if stage.kind is Kind.LAYER:
            self.layer = name
        if module is None or stage.kind not in (Kind.LAYER, Kind.NORM):
            return stage
        if name in self._visited:
            raise ModelError(f"layer {name!r} is no link of a chain: it is used twice")
        self._visited.add(name)
        for short, _ in module.named_parameters(recurse=False):
            other = self._shared.get(f"{name}.{short}")
            if other is None:
                continue
            if self._modules[other.rpartition(".")[0]] is module:
                raise ModelError(f"layer {name!r} is no link of a chain: it is used twice, also as {other}")
            raise ModelError(f"layer {name!r} is no link of a chain: its {short} is tied with {other}")
        return stage

    # ---- what to say of what is no chain ------------------------------------------------------------------

    def _refused(self, why: str) -> ModelError:
        """What is said of the last layer, if what follows makes it no link of a chain."""
        what = f"layer {self.layer!r} is" if self.layer else "the model's input is"
        return ModelError(f"{what} no link of a chain: {why}")

    def _branch(self, before: fx.Node) -> str:
        reached: set[fx.Node] = {before}
        for node in self._graph.graph.nodes:
            sources = [each for each in node.all_input_nodes if each in self._flowing]
            if (
                node in self._flowing
                and node is not self._output
                and any(each in reached for each in sources)
            ):
                reached.add(node)
                if len(set(sources)) > 1 and self._owner(node)[1] is None:
                    return f"its output feeds {self._meeting(node)}"
        users = list(dict.fromkeys(self._describe(user) for user in self._users(before)))
        return "its output is used twice, by " + " and ".join(users[:2])

    def _meeting(self, node: fx.Node) -> str:
        """An operation of several tensors, with where the others come from."""
        others = [self._origin(each) for each in node.all_input_nodes]
        others = [other for other in dict.fromkeys(others) if other != repr(self.layer)]
        return self._describe(node) + (f" together with {', '.join(others)}" if others else "")

    def _describe(self, node: fx.Node) -> str:
        if node is self._output:
            return "the model's output"
        layer = self._owner(node)[1]
        name = op_name(node)
        if layer is not None:
            return repr(layer)
        return f"the {_MEETINGS[name]} '{name}'" if name in _MEETINGS else f"'{name}()'"

    def _origin(self, node: fx.Node) -> str:
        """The layer whose output a tensor is, seen from behind."""
        while True:
            if node.name in self._graph.tensors:
                return f"the parameter or buffer {self._graph.tensors[node.name]!r}"
            if node.op == "placeholder":
                return "the model's input"
            layer = self._owner(node)[1]
            if layer is not None and isinstance(self._modules[layer], LAYERS):
                return repr(layer)
            sources = [each for each in node.all_input_nodes if each.name not in self._graph.tensors]
            if len(sources) != 1:
                return self._describe(node)
            (node,) = sources


def _input(model: nn.Module, graph: Captured) -> fx.Node:
    """The one input that the output is computed from."""
    live = leading_to(list(graph.graph.nodes)[-1])
    given = [node for node in _given(graph) if node in live]
    if len(given) != 1:
        called = dict(zip(graph.given, inspect.signature(model.forward).parameters, strict=False))
        names = ", ".join(called.get(node, node.name) for node in given) or "none"
        raise ModelError(f"a chain has one input, the model's output is computed from {names}")
    return given[0]


def _given(graph: Captured) -> list[fx.Node]:
    """The user's inputs that are tensors."""
    return [node for node in graph.given if isinstance(node.meta.get("val"), Tensor)]


def _is_whole(module: nn.Module) -> bool:
    """Whether a module's call is one operation: layers and batch norms, and all of PyTorch's own."""
    own = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return own or isinstance(module, LAYERS + NORMS)


def shared_parameters(model: nn.Module) -> dict[str, str]:
    """For each parameter that shares its numbers with another, by full name, the other's full name."""
    names: dict[Any, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        # two parameters may also be made on the same memory; where there is none (meta), all are at 0
        place: Any = (parameter.data_ptr(), parameter.shape) if parameter.numel() else 0
        if not place or not place[0]:
            place = id(parameter)
        names.setdefault(place, []).append(name)
    return {
        name: next(other for other in same if other != name)
        for same in names.values()
        if len(same) > 1
        for name in same
    }
