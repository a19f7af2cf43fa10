"""The operations of a network as calls of its layers, and what reads what: a view of its captured graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import fx, nn

from prunekit.graph.branches import unread_of
from prunekit.graph.capture import canonical
from prunekit.graph.captured_graph import Captured, behind, op_name, shape_of


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One call of a layer of PyTorch's, with all its operators, or one operator that the network calls.

    Attributes:
        name: the layer's full name; empty for an operator.
        layer: the module; None for an operator.
        nodes: of the graph, in order.
    """

    name: str
    layer: nn.Module | None
    nodes: tuple[fx.Node, ...]

    def __str__(self) -> str:
        """What messages call it."""
        return repr(self.name) if self.name else f"{op_name(self.nodes[0])}()"

    @property
    def value(self) -> fx.Node:
        """The node that others read."""
        return self.nodes[-1]

    @property
    def shape(self) -> list[int]:
        """The shape of what it gives."""
        return shape_of(self.value)


class LayerCalls:
    """The operations that a network's inputs flow through, in order.

    Args:
        model: the network.
        graph: of it, in evaluation mode.
    """

    def __init__(self, model: nn.Module, graph: Captured) -> None:
        self.model = model
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._names = canonical(model)
        unread = unread_of(graph)
        nodes = [node for node in graph.graph.nodes if node not in unread]
        self._flowing = set(behind(set(graph.given), nodes))
        self._given = set(graph.given)
        grouped: dict[object, list[fx.Node]] = {}
        for node in nodes:
            if node.op == "call_function" and node in self._flowing:
                grouped.setdefault(self._call(node)[0], []).append(node)
        self._order: dict[LayerCall, None] = {}
        self._of: dict[fx.Node, LayerCall] = {}
        for found in grouped.values():
            name = self._call(found[0])[1]
            call = LayerCall(name, self._modules[name] if name else None, tuple(found))
            self._order[call] = None
            self._of |= dict.fromkeys(found, call)
        (self._output,) = graph.graph.find_nodes(op="output")
        self._times = Counter(id(call.layer) for call in self._order if call.layer is not None)
        self._tied = Counter(self._names.values())
        self._places = Counter(id(module) for module in self._modules.values())

    def __iter__(self) -> Iterator[LayerCall]:
        """In the order in which they are called."""
        return iter(list(self._order))

    def call_at(self, node: fx.Node) -> LayerCall | None:
        """The call that gives a value; None for the network's own input."""
        return self._of.get(node)

    def sources(self, call: LayerCall) -> list[LayerCall | None]:
        """What a call reads of the data, each once; None for the network's own input."""
        read = (node for own in call.nodes for node in own.all_input_nodes if node not in call.nodes)
        flowing = dict.fromkeys(node for node in read if node in self._flowing)
        return list(dict.fromkeys(None if node in self._given else self._of[node] for node in flowing))

    def readers(self, call: LayerCall) -> list[LayerCall | None]:
        """The calls that read what a call gives, each once; None where the network returns it."""
        users = dict.fromkeys(user for node in call.nodes for user in node.users if user not in call.nodes)
        found = [None if user is self._output else self._of.get(user) for user in users]
        return list(dict.fromkeys(each for each in found if each is None or each is not call))

    def only_source(self, call: LayerCall) -> LayerCall | None:
        """The one call that a call reads; None where it reads several, or the network's input."""
        found = self.sources(call)
        return found[0] if len(found) == 1 else None

    def only_reader(self, call: LayerCall) -> LayerCall | None:
        """The one call that reads a call, which reads nothing else; None where there is no such call."""
        found = self.readers(call)
        reader = found[0] if len(found) == 1 else None
        return reader if reader is not None and self.only_source(reader) is call else None

    def described(self, calls: Iterable[LayerCall | None]) -> str:
        """LayerCalls in the words of a message."""
        return " and ".join("the network's output" if each is None else str(each) for each in calls)

    def oddity(self, call: LayerCall) -> str:
        """Why a layer cannot be changed or taken out at its place; empty where it can."""
        layer = call.layer
        if layer is None:
            return "it is called as a function and is no layer of its own"
        if self._times[id(layer)] > 1:
            return "it is called more than once"
        if self._places[id(layer)] > 1:
            return "it stands in the network under several names"
        if not call.name:
            return "it is the whole network: put it into an nn.Sequential"
        for short in ("weight", "bias"):
            if hasattr(layer, short) and short not in layer._parameters:
                return f"its {short} is no plain parameter, as under a parametrization or weight norm"
        own = {f"{call.name}.{short}" for short, _ in layer.named_parameters(recurse=False)}
        tied = next((name for name in own if self._tied[self._names[name]] > 1), None)
        return "" if tied is None else f"{tied} is tied with another parameter"

    def pass_over(self, call: LayerCall) -> None:
        """Leave out a call that gives the one thing that it reads: its readers then read that."""
        source = self.only_source(call)
        del self._order[call]
        if source is None:
            self._given.update(call.nodes)
            return
        joined = LayerCall(source.name, source.layer, (*source.nodes, *call.nodes))
        self._order = {joined if each is source else each: None for each in self._order}
        self._of |= dict.fromkeys(joined.nodes, joined)

    def _call(self, node: fx.Node) -> tuple[object, str]:
        """What nodes of one call have in common, and the name of its layer."""
        for key, (name, *_) in (node.meta.get("nn_module_stack") or {}).items():
            module = self._modules.get(str(name))
            if module is not None and _is_layer(module):
                return str(key), str(name)
        return node, ""


def _is_layer(module: nn.Module) -> bool:
    """Whether a module computes what one of PyTorch's own does, by itself."""
    inner = [name for name, _ in module.named_children() if name != "parametrizations"]
    owner = getattr(type(module).forward, "__module__", None) or ""
    return owner.startswith("torch.nn") and not inner
