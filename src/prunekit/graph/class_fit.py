"""Whether the network's own code computes what the smaller graph says, found node by node, and what helps.

The smaller network is recorded beside the graph whose constants were made to fit. Where they part ways, the
units that meet there cannot go without the code being changed. Where they differ by a constant factor, as
where the temperature of attention follows the width of its heads, the layer that makes the queries can make
up for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs, arguments
from prunekit.graph.capture import canonical
from prunekit.graph.captured_graph import Captured, argument, module_of, op_name, shape_of
from prunekit.graph.coupling_graph import CouplingGraph, KeepMasks
from prunekit.graph.labels import Flags, position
from prunekit.graph.ops import operator_of
from prunekit.graph.ops.registry import new_shape
from prunekit.graph.places import place_in, place_of, short
from prunekit.graph.query_scale import scaled_back
from prunekit.graph.record import NotRecordedError, recorded
from prunekit.graph.surgery import Operation
from prunekit.modes import evaluating

_SAME = {
    **dict.fromkeys(("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk"), "split"),
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "view_as", "reshape_as"), "reshape"),
}
_CLOSE = 1e-12
Blamed = dict[str, str]
"""Groups that cannot all lose their units at a place, each with the reason."""


@dataclass(frozen=True)
class Misfit:
    """Where the code asks for something else than the units that stay give.

    Attributes:
        node: of the captured graph.
        axes: of its value, along which sizes differ; empty where that is not known.
        why: what is asked for, with the line of code where it is known.
    """

    node: fx.Node
    axes: tuple[int, ...]
    why: str

    def groups(self, found: CouplingGraph, losing: Mapping[str, Any], *, before: bool = False) -> Blamed:
        """The groups whose missing units meet this axis, or else the node, with the reason.

        Args:
            found: the plan and its graphs.
            losing: groups that lose units.
            before: whether to look at the nodes before it where none meet it.
        """
        names = _meeting(self.node, found, losing, self.axes) if self.axes else []
        node = self.node
        while not names and node.op != "root":
            around = [node, *node.all_input_nodes]
            names = list(dict.fromkeys(name for each in around for name in _meeting(each, found, losing)))
            if not before:
                break
            node = node.prev
        return dict.fromkeys(names, self.why)


def _meeting(
    node: fx.Node, found: CouplingGraph, losing: Mapping[str, Any], axes: tuple[int, ...] = ()
) -> list[str]:
    """Those of the groups that lose units which meet some axes of a node's value, or any."""
    numbers: set[int] = set()
    for labelling in found.labellings:
        for value in labelling.nodes[0].get(node.name, ()):
            for axis, labels in enumerate(value):
                if labels is not None and (not axes or axis in axes):
                    numbers |= {*np.unique(labelling.group[labels]).tolist()}
    return [
        group.name
        for number, group in enumerate(found.plan.groups)
        if number in numbers and group.name in losing
    ]


def in_the_way(work: Operation, found: CouplingGraph, losing: Mapping[str, Any]) -> list[Blamed]:
    """The groups whose units the code cannot do without by what its sizes are computed from, place by place.

    Args:
        work: that takes them out.
        found: the plan and its graphs.
        losing: groups that lose units.
    """
    nodes = {node.name: node for node in work.graphs[0].graph.nodes}
    places: list[Blamed] = []
    for unmet in work.unmet:
        if unmet.module:
            within = [node for node in nodes.values() if module_of(node) == unmet.module]
            names = dict.fromkeys(name for node in within for name in _meeting(node, found, losing))
            places.append(dict.fromkeys(names, _asks(unmet.line)))
            continue
        node, axes = nodes[unmet.node], tuple[int, ...]()
        if len(unmet.place) == 2 and isinstance(unmet.place[1], int):
            if _SAME.get(op_name(node)) == "reshape":
                axes = (unmet.place[1],)
            elif op_name(node) == "unflatten":
                axes = (position(argument(node, "dim"), len(shape_of(node.args[0]))) + unmet.place[1],)
        places.append(Misfit(node, axes, _asks(unmet.line)).groups(found, losing))
    return [each for each in places if each]


def misfit(
    model: nn.Module, graph: Captured, keeping: KeepMasks, example_inputs: Inputs, *, scaling: bool = True
) -> tuple[Misfit | None, dict[str, Tensor]]:
    """The first place where a smaller network's code asks for something else, and factors that help before.

    Args:
        model: the smaller network.
        graph: of the whole one in evaluation mode, with constants that fit the smaller one.
        keeping: what stays of every node.
        example_inputs: of the shapes that the graph was captured with.
        scaling: whether factors may help; else a temperature that follows the width is such a place.

    Returns:
        None where there is no such place, and for parameters of the smaller network by which numbers they are
        to be multiplied.
    """
    if graph.uses is None:  # calls of an exported graph are not those of a recorded one
        return None, {}
    args, kwargs = arguments(example_inputs)
    with evaluating(model), torch.enable_grad():
        given, failure = _recorded(partial(recorded, model, args, kwargs, canonical(model)))
        if failure is not None:  # it may ask for values
            given, failure = _recorded(partial(recorded, model, args, kwargs, canonical(model), values=True))
    return (None, {}) if given is None else _Compared(graph, keeping, given, failure, scaling).run()


def _recorded(record: Callable[[], Captured]) -> tuple[Captured | None, NotRecordedError | None]:
    """A graph, or as much of it as there is and what came then."""
    try:
        return record(), None
    except NotRecordedError as error:
        return error.so_far, error


class _Compared:
    """Two graphs of the same calls: as they should be, and as the code gives them.

    Args:
        graph: as it should be.
        keeping: what stays of its nodes.
        given: by the code, as far as it came.
        failure: that it came to.
        scaling: whether factors may help.
    """

    def __init__(
        self,
        graph: Captured,
        keeping: KeepMasks,
        given: Captured,
        failure: NotRecordedError | None,
        scaling: bool,
    ) -> None:
        self._keeps: Callable[[fx.Node], Any] = lambda node: keeping(0, node.name)
        self._graphs = graph, given
        self._failure = failure
        self._scaling = scaling
        self._factors: dict[str, Tensor] = {}

    def run(self) -> tuple[Misfit | None, dict[str, Tensor]]:
        """Every pair in turn."""
        wanted, given = (_calls(each) for each in self._graphs)
        for pair in zip(wanted, given, strict=False):
            found = self._sizes(*pair) or self._temperature(*pair)
            if found is not None:
                return found, {}
        if self._failure is not None and len(given) < len(wanted):
            return self._failed(wanted[len(given)], self._failure), {}
        return None, self._factors

    def _sizes(self, wanted: fx.Node, given: fx.Node) -> Misfit | None:
        names = [_SAME.get(op_name(each), op_name(each)) for each in (wanted, given)]
        if names[0] != names[1]:
            return Misfit(
                wanted, (), f"the code calls {names[1]!r} in place of {names[0]!r}{short(place_in(given))}"
            )
        value = given.meta.get("val")
        if isinstance(value, Tensor) and isinstance(wanted.meta.get("val"), Tensor):
            shape, right = list(value.shape), new_shape(wanted, self._keeps)
            if shape != right:
                why = f"the code gives {tuple(shape)} in place of {tuple(right)} at {names[0]!r}"
                place = module_of(wanted)
                where = f"{f' in {place!r}' if place else ''}{short(place_in(wanted))}"
                return Misfit(wanted, _differing(shape, right), f"{why}{where}")
        return None

    def _temperature(self, wanted: fx.Node, given: fx.Node) -> Misfit | None:
        """A factor that follows the width in the code, and is that of the full width in the graph."""
        factors = [_factor(*pair) for pair in zip((wanted, given), self._graphs, strict=True)]
        if factors[0] is None or not factors[1] or abs(factors[0] - factors[1]) <= _CLOSE * abs(factors[1]):
            return None
        sources: list[Any] = [each for each in given.args[:2] if isinstance(each, fx.Node)]
        if op_name(given) != "scaled_dot_product_attention":
            sources = sources[:1]
        names = self._graphs[1].tensors
        ways = [
            {names[node.name]: marks for node, marks in way.items()}
            for way in scaled_back(given, sources)
            if all(node.name in names for node in way)
        ]
        if not ways or not self._scaling:
            return _too_narrow(wanted)
        factor = factors[0] / factors[1]
        if not any(self._multiplied(way, factor) for way in ways):
            self._multiply(ways[0], factor)
        return None

    def _multiplied(self, entries: Mapping[str, Flags], factor: float) -> bool:
        """Whether these are multiplied already, as keys are that other queries meet."""
        return all(
            name in self._factors
            and bool((self._factors[name][torch.from_numpy(marks.copy())] == factor).all())
            for name, marks in entries.items()
        )

    def _multiply(self, entries: Mapping[str, Flags], factor: float) -> None:
        for name, marks in entries.items():
            factors = self._factors.setdefault(name, torch.ones(marks.shape, dtype=torch.float64))
            # set, not multiplied: a layer that is called twice is multiplied once
            factors[torch.from_numpy(marks.copy())] = factor

    def _failed(self, node: fx.Node, error: NotRecordedError) -> Misfit:
        """The node that the code did not come to."""
        where = place_of(error.__cause__ or error)
        func, args = error.attempted or (None, None)
        name = "" if func is None else func.overloadpacket.__name__
        if name == op_name(node) == "unflatten" and args is not None:
            first = position(args[1], len(shape_of(node.args[0])))
            differ = _differing(args[2], argument(node, "sizes"))
            return Misfit(node, tuple(first + axis for axis in differ), _asks(where))
        axes: tuple[int, ...] = ()
        if (
            _SAME.get(name) == _SAME.get(op_name(node)) == "reshape"
            and args is not None
            and len(node.args) > 1
        ):
            axes = _differing(args[1], node.args[1])
        return Misfit(node, axes, _asks(where))


def _calls(graph: Captured) -> list[fx.Node]:
    """The operators, without copies that are made only where sizes lead to another layout."""
    return [
        node for node in graph.graph.nodes if node.op == "call_function" and op_name(node) != "contiguous"
    ]


def _asks(where: str) -> str:
    return f"the code asks for other sizes{where}"


def _too_narrow(node: fx.Node) -> Misfit:
    """Queries whose width may not change, since nothing can make up for the temperature that follows it."""
    source: Any = node.args[0] if isinstance(node.args[0], fx.Node) else node.args[1]
    if operator_of(source).mixes and isinstance(source.args[0], fx.Node):
        source = source.args[0]
    axis = len(shape_of(source)) - 1
    where = f"{op_name(node)!r}{short(place_in(node))}"
    return Misfit(source, (axis,), f"the temperature at {where} follows the width of the heads")


def _factor(node: fx.Node, graph: Captured) -> float | None:
    """By what a node multiplies its first tensor: a scale or a number; None where it is neither."""
    name = op_name(node)
    if name == "scaled_dot_product_attention":
        scale = node.kwargs.get("scale")
        return float(scale) if isinstance(scale, (int, float)) else 1 / math.sqrt(shape_of(node.args[0])[-1])
    if name not in ("mul", "div"):
        return None
    first, second = (_number(each, graph) for each in node.args[:2])
    if name == "mul":
        return first if second is None else second
    return 1 / second if first is None and second else None


def _number(value: Any, graph: Captured) -> float | None:
    """A number, or a tensor of one that depends on no parameter and no input."""
    if not isinstance(value, fx.Node):
        return float(value) if isinstance(value, (int, float)) else None
    found = _constant(value, graph)
    return float(found) if found is not None else None


def _constant(node: fx.Node, graph: Captured) -> Tensor | None:
    if tuple(getattr(node.meta.get("val"), "shape", (0,))) != ():
        return None
    if node.op == "placeholder":
        kind, name = graph.placeholders[node]
        return graph.constants[name] if kind == "constant" else None
    given = {each: _constant(each, graph) for each in node.all_input_nodes}
    if not callable(node.target) or any(each is None for each in given.values()):
        return None
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
    found = node.target(*args, **kwargs)
    return found if isinstance(found, Tensor) else None


def _differing(first: Any, second: Any) -> tuple[int, ...]:
    """The places where two lists of as many sizes differ."""
    if not isinstance(second, (list, tuple)) or len(first) != len(second):
        return ()
    return tuple(axis for axis, pair in enumerate(zip(first, second, strict=True)) if pair[0] != pair[1])
