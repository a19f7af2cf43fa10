"""A chain of layers as a view of a network's captured graph: for what can be computed faster on a path.

A tensor that everything behind it depends on alone is a joint. Between one joint and the next lies one
operation: one call of a layer, one operator, or several pointwise operators, such as x + x^3.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from prunekit.errors import ModelError
from prunekit.graph.captured import Captured, leading_to
from prunekit.graph.ops import op_name
from prunekit.structure.calls import LayerReader, Reshaped
from prunekit.structure.chain import Chain, Stage
from prunekit.structure.linking import link
from prunekit.structure.operations import (
    LAYERS,
    POINTWISE_NAMES,
    POOL_NAMES,
    Kind,
    Operation,
    is_leaf,
    module_operation,
)
from prunekit.targets import unwrap

_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"})
_SOFTMAX = frozenset({"softmax", "log_softmax", "_softmax", "_log_softmax"})
_SHAPED = "lays units out in a new shape"
_MEETINGS = {"add": "sum", "sub": "difference", "mul": "product", "cat": "concatenation", "stack": "stack"}


def chain_view(model: nn.Module, graph: Captured, *, inputs: bool = False) -> Chain:
    """The chain that a captured graph is.

    Args:
        model: the network.
        graph: as it computes in evaluation mode, with two or more examples in its inputs.
        inputs: whether the network's input features are a group, too.

    Raises:
        ModelError: naming the first layer that is no link of a chain, with the reason.
    """
    return link(_Reader(unwrap(model), graph).operations(), inputs=inputs)


@dataclass(frozen=True)
class Applied:
    """Operators in a row, from one tensor to one; none changes what it is given.

    Attributes:
        nodes: the operators; the tensor flows into the first.
        entry: the node that gives the tensor.
    """

    nodes: tuple[fx.Node, ...]
    entry: fx.Node

    @property
    def target(self) -> str:
        """The operator's name, where it is one."""
        return op_name(self.nodes[0]) if len(self.nodes) == 1 else ""

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        values: dict[fx.Node, Any] = {self.entry: x}
        for node in self.nodes:
            args: Any = fx.node.map_arg(node.args, values.__getitem__)
            kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
            if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                args = (args[0].clone(), *args[1:])
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found: Tensor = values[self.nodes[-1]]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Applied:
        return self  # it holds nothing of the network's


@dataclass
class _Step:
    """One call of a layer, with all its operators, or one operator."""

    nodes: list[fx.Node]
    layer: str | None


class _Reader:
    """Follows one tensor from joint to joint."""

    def __init__(self, model: nn.Module, graph: Captured) -> None:
        self._model = model
        self._graph = graph
        self._layers = LayerReader(model)
        self._modules = dict(model.named_modules())
        self._output = list(graph.graph.nodes)[-1]
        self._live = leading_to(self._output)
        self._entry = self._input()
        self._flowing = _behind(self._entry, self._live)

    def operations(self) -> tuple[Operation, ...]:
        """The operations in order."""
        steps = self._steps()
        at = {node: place for place, step in enumerate(steps) for node in step.nodes}

        def reach_of(nodes: Sequence[fx.Node]) -> int:
            """The last step that uses one of the nodes."""
            return max((at.get(user, len(steps)) for node in nodes for user in self._users(node)), default=0)

        found: list[Operation] = []
        before, start, reach = self._entry, 0, reach_of([self._entry])
        for place, step in enumerate(steps):
            if reach > place:  # something from before is used behind this step, too
                reach = max(reach, reach_of(step.nodes))
                continue
            found.append(self._read(before, steps[start : place + 1]))
            before, start, reach = self._left(step, at, place), place + 1, reach_of(step.nodes)
        if start < len(steps):
            raise self._layers.refused(self._branch(before))
        if not self._graph.gives.is_leaf():
            raise self._layers.refused("the model returns something other than one tensor")
        return tuple(found)

    def _input(self) -> fx.Node:
        placeholders = [node for node in self._graph.graph.nodes if node.op == "placeholder"]
        kinds = dict(zip(placeholders, self._graph.inputs, strict=True))
        own = [node for node in placeholders if kinds[node][0] == "user" and node in self._live]
        given = [node for node in own if isinstance(node.meta.get("val"), Tensor)]
        if len(given) != 1:
            taken = [node for node in placeholders if kinds[node][0] == "user"]
            asked = list(inspect.signature(self._model.forward).parameters)
            called = dict(zip(taken, asked, strict=False))
            names = ", ".join(called.get(node, node.name) for node in given) or "none"
            raise ModelError(f"a chain has one input, the model's output is computed from {names}")
        return given[0]

    def _steps(self) -> list[_Step]:
        """The operators that the input flows through, those of one call of a layer together."""
        steps: list[_Step] = []
        calls: dict[str, _Step] = {}
        for node in self._graph.graph.nodes:
            if node not in self._flowing or node is self._output or node is self._entry:
                continue
            call, layer = self._owner(node)
            if call in calls:
                calls[call].nodes.append(node)
                continue
            steps.append(_Step([node], layer))
            if call:
                calls[call] = steps[-1]
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

    def _left(self, step: _Step, at: dict[fx.Node, int], place: int) -> fx.Node:
        """The node of a step whose value is used behind it."""
        return next(n for n in reversed(step.nodes) if any(at.get(u, -1) != place for u in self._users(n)))

    def _read(self, before: fx.Node, steps: Sequence[_Step]) -> Operation:
        if len(steps) == 1 and steps[0].layer is not None:
            return self._layers.read(steps[0].layer)
        if any(step.layer is not None for step in steps):
            raise self._layers.refused(self._branch(before))
        nodes = [node for step in steps for node in step.nodes]
        for node in nodes:
            if any(other not in self._flowing for other in node.all_input_nodes):
                raise self._layers.refused(f"its output feeds {self._meeting(node)}")
        stage = Stage(f"{op_name(nodes[0])}()", Applied(tuple(nodes), before), None)
        if len(nodes) == 1:
            return self._read_operator(nodes[0], stage)
        if len(nodes) == 2 and op_name(nodes[0]) in POOL_NAMES and nodes[1].target is operator.getitem:
            return Operation(Kind.POOL, stage)  # the maximum, without where it was
        if not all(op_name(node) in POINTWISE_NAMES for node in nodes):
            raise self._layers.refused(self._branch(before))
        return Operation(Kind.POINTWISE, stage)

    def _read_operator(self, node: fx.Node, stage: Stage) -> Operation:
        name = op_name(node)
        if name in _DROPOUTS:
            if node.args[2]:
                raise self._layers.refused(
                    f"its output feeds '{name}()', which drops units in evaluation, too: give it "
                    "`training=self.training`"
                )
            return Operation(Kind.POINTWISE, stage)
        if name in POINTWISE_NAMES:
            return Operation(Kind.POINTWISE, stage)
        if name in POOL_NAMES:
            return Operation(Kind.POOL, stage)
        if name in _SOFTMAX:
            return Operation(Kind.SIDE, stage, "mixes units")
        if name in ("flatten", "view", "reshape", "_unsafe_view"):
            return self._shaping(node, stage)
        if name in ("squeeze", "unsqueeze"):
            return Operation(Kind.SIDE, stage, _SHAPED)
        raise self._layers.refused(
            f"its output feeds '{name}()', which is none of the operations that a chain can hold"
        )

    def _shaping(self, node: fx.Node, stage: Stage) -> Operation:
        """Flattening, or another shape, which only fits the network's ends."""
        before, after = (each.meta["val"].shape for each in (node.args[0], node))  # type: ignore[union-attr]
        if op_name(node) == "flatten":
            asked: Sequence[Any] = (-1, -1) if len(after) == 2 else after
        else:
            asked = node.args[1]  # type: ignore[assignment]
        keeps = asked[0] in (-1, before[0]) and after[0] == before[0]
        if not keeps:
            raise self._layers.refused(
                f"its output feeds '{op_name(node)}()', which does not keep the batch as its first dimension"
            )
        sizes = tuple(int(size) for size in asked[1:])
        stage = Stage(stage.name, Reshaped(sizes), None)
        if len(sizes) == 1:
            return Operation(Kind.FLATTEN, stage, "" if sizes[0] == -1 else str(sizes[0]))
        return Operation(Kind.SIDE, stage, _SHAPED)

    # ---- what to say of what is no chain ------------------------------------------------------------------

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
        others = [other for other in dict.fromkeys(others) if other != repr(self._layers.layer)]
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


def _is_whole(module: nn.Module) -> bool:
    """Whether a module's call is one operation: those that a chain holds, and all of PyTorch's own."""
    own = type(module).__module__.startswith("torch.nn") and not isinstance(module, nn.Sequential)
    return own or is_leaf(module) or isinstance(module_operation(module), tuple)


def _behind(entry: fx.Node, live: set[fx.Node]) -> set[fx.Node]:
    """Everything live that is computed from a node, and the node itself."""
    found, waiting = {entry}, [entry]
    while waiting:
        for user in waiting.pop().users:
            if user in live and user not in found:
                found.add(user)
                waiting.append(user)
    return found
