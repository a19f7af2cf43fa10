"""The sizes that a graph holds as numbers, as nodes that compute them from the sizes of tensors.

What changes between the graphs for inputs of several sizes is computed: by the expression that the recording
saw in the network's code, or by the sizes of what a node reads, of the inputs, or of what was computed
before, whichever gives the right number at all sizes.
"""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.graph.captured_graph import Captured, GraphModel, op_name
from prunekit.graph.free_axes import Axis, FreeAxes, sizes_of
from prunekit.graph.places import line_at
from prunekit.graph.size_run import COMPARISONS, OPERATIONS, Computed, Expression, Extent, Place, Read

Graphs = tuple[Captured, ...]
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
_INFERRED = ("view", "reshape", "_unsafe_view")


class HeldError(Exception):
    """Why some axes stay bound to their size; by their number in the list of free axes."""

    def __init__(self, number: int, why: str) -> None:
        super().__init__(why)
        self.number, self.why = number, why


@dataclass(frozen=True)
class SizedRun:
    """What the graphs do on inputs of some sizes.

    Attributes:
        inputs: of these sizes.
        graphs: for them.
        changed: the numbers of the free axes that have another size than in the first run.
        shapes: for each graph by the name of the node the shapes of what it gives.
        model: with the graphs.
    """

    inputs: Inputs
    graphs: Graphs
    changed: tuple[int, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    model: GraphModel


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def line_of(node: fx.Node) -> str:
    """The line of the network's code that calls a node, for an error."""
    return line_at(node.meta.get("place"))


def differing(value: Any, other: Any, place: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """The places, with both values, in which nested arguments differ."""
    if isinstance(value, (tuple, list)) and isinstance(other, (tuple, list)) and len(value) == len(other):
        for index, pair in enumerate(zip(value, other, strict=True)):
            yield from differing(*pair, (*place, index))
    elif isinstance(value, Mapping) and isinstance(other, Mapping) and value.keys() == other.keys():
        for key in value:
            yield from differing(value[key], other[key], (*place, key))
    elif isinstance(value, slice) and isinstance(other, slice):
        parts = ((each.start, each.stop, each.step) for each in (value, other))
        if len({*parts}) > 1:
            yield place, value, other
    elif isinstance(value, Tensor) or isinstance(other, Tensor):
        if value is not other:
            yield place, value, other
    elif type(value) is not type(other) or not (value == other or _is_nan(value)):
        yield place, value, other


def same_answer(first: int, second: int, symbol: str, outcome: bool, line: str) -> None:
    """Refuse inputs of a size for which the network's own code takes another way.

    Args:
        first: a size.
        second: a number that the code compares it with.
        symbol: of the comparison, as in Python.
        outcome: what came out of it where the network was captured.
        line: of the code.

    Raises:
        InputError: where something else comes out.
    """
    if COMPARISONS[symbol](first, second) != outcome:
        raise InputError(
            "an exported network goes the way of its example inputs, and for these its code goes another: "
            f"{first} {symbol} {second} is {not outcome}{line}"
        )


@dataclass(frozen=True)
class _Rule:
    """A size: an expression times a fraction, plus a number."""

    expression: Expression
    times: int = 1
    over: int = 1
    plus: int = 0


class FreedGraph:
    """One graph whose sizes are computed.

    Args:
        model: the original, whose attributes are read.
        runs: at all sizes, the first at those of the graph.
        number: of the graph.
    """

    def __init__(self, model: nn.Module, runs: Sequence[SizedRun], number: int) -> None:
        self._model = model
        self._runs, self._number = runs, number
        self._captured = runs[0].graphs[number]
        self._graph = copy.deepcopy(self._captured.graph)
        self._shapes = [run.shapes[number] for run in runs]
        self._axes = sizes_of(runs[0].inputs)
        self._sizes = [sizes_of(run.inputs) for run in runs]
        self._nodes = {node.name: node for node in self._graph.nodes}
        self._order = {name: place for place, name in enumerate(self._nodes)}
        self._extents: dict[tuple[str, int], fx.Node] = {}
        every = [graph.uses for graph in runs[0].graphs if graph.uses is not None]
        self._compared = [each for uses in every for each in uses.compared]
        self._expressions: dict[tuple[str, Place], list[Expression]] = {}
        for uses in every:
            for use in uses.arguments:
                self._expressions.setdefault((use.node, use.place), []).append(use.expression)

    def captured(self, axes: Sequence[FreeAxes], held: Mapping[Axis, str]) -> Captured:
        """The graph with free sizes."""
        others = [list(run.graphs[self._number].graph.nodes) for run in self._runs[1:]]
        for place, node in enumerate(list(self._graph.nodes)):
            if node.op != "call_function":
                continue
            there = [each[place] for each in others]
            found: dict[tuple[Any, ...], list[int]] = {}
            for run, each in enumerate(there, 1):
                same = fx.node.map_arg((each.args, each.kwargs), lambda other: self._nodes[other.name])
                for where, before, after in differing((node.args, node.kwargs), same, ()):
                    found.setdefault(where, [before] * len(self._runs))[run] = after
            self._free(node, found)
        self._ask_again()
        for number, node in enumerate(self._given()):
            free = tuple(sorted(axis for each in axes for which, axis in each.axes if which == number))
            node.meta["free"] = free
            node.meta["bound"] = {axis: why for (which, axis), why in held.items() if which == number}
        self._graph.lint()
        return replace(self._captured, graph=self._graph)

    def _ask_again(self) -> None:
        """What the code asked of free sizes is asked in every run, and has to be answered the same."""
        asked: dict[tuple[Any, ...], None] = {}
        for each in self._compared:
            pairs = [
                (self._evaluated(each.first, run), self._evaluated(each.second, run))
                for run in range(len(self._runs))
            ]
            if not any(None in pair for pair in pairs) and len({*pairs}) > 1:
                asked[each.symbol, each.first, each.second, each.outcome, line_at(each.line)] = None
        end = self._graph.output_node()
        for symbol, first, second, outcome, line in asked:
            operands = [self._node_of(each, end) for each in (first, second)]
            with self._graph.inserting_before(end):
                self._graph.call_function(same_answer, (*operands, symbol, outcome, line))

    def _given(self) -> list[fx.Node]:
        pairs = zip(self._graph.find_nodes(op="placeholder"), self._captured.inputs, strict=True)
        return [node for node, (kind, _) in pairs if kind == "user"]

    def _free(self, node: fx.Node, found: Mapping[tuple[Any, ...], list[int]]) -> None:
        """Let the numbers of a node that change be computed."""
        unknown: list[tuple[Any, ...]] = []
        rules: dict[tuple[Any, ...], _Rule] = {}
        for where, values in found.items():
            rule = self._rule(node, where[1:], values)
            if rule is None:
                unknown.append(where)
            else:
                rules[where] = rule
        if len(unknown) == 1 and op_name(node) in _INFERRED and unknown[0][:2] == (0, 1):
            self._put(node, unknown.pop(), -1)
        if unknown:
            values = found[unknown[0]]
            blamed = [
                run.changed[0]
                for run, value in zip(self._runs, values, strict=True)
                if len(run.changed) == 1 and value != values[0]
            ]
            why = f"nothing says how {values[0]} of {op_name(node)!r} follows from the inputs{line_of(node)}"
            raise HeldError(max(blamed, default=0), why)
        for where, rule in rules.items():
            self._put(node, where, self._made(rule, node))

    def _put(self, node: fx.Node, where: tuple[Any, ...], value: Any) -> None:
        """Another value in a place of a node's arguments."""

        def put(held: Any, rest: tuple[Any, ...]) -> Any:
            if not rest:
                return value
            if isinstance(held, Mapping):
                return {key: put(each, rest[1:]) if key == rest[0] else each for key, each in held.items()}
            items = [put(each, rest[1:]) if index == rest[0] else each for index, each in enumerate(held)]
            return type(held)(items)

        node.args, node.kwargs = put((node.args, node.kwargs), where)

    # ---- what a size is computed from ----------------------------------------------------------------------

    def _rule(self, node: fx.Node, where: Place, values: Sequence[int]) -> _Rule | None:
        """The first of the ways to compute a size that gives the right number at all sizes."""
        for expression in self._candidates(node, where):
            found = [self._evaluated(expression, run) for run in range(len(self._runs))]
            if any(each is None for each in found):
                continue
            rule = _fitting(expression, [each for each in found if each is not None], values)
            if rule is not None:
                return rule
        return None

    def _candidates(self, node: fx.Node, where: Place) -> Iterator[Expression]:
        """The code's own expression; sizes of what the node reads, and of the inputs; their products."""
        yield from self._expressions.get((node.name, where), ())
        near = list(self._changing(node.all_input_nodes))
        yield from near
        given = list(self._changing(self._given()))
        yield from given
        for pair in itertools.combinations_with_replacement([*near, *given], 2):
            yield Computed("*", *pair)
        before = itertools.takewhile(lambda each: each is not node, self._graph.nodes)
        yield from self._changing(list(before)[::-1])

    def _changing(self, nodes: Sequence[fx.Node]) -> Iterator[Extent]:
        """The sizes of tensors that are not the same in all runs."""
        for node in nodes:
            shapes = [shapes.get(node.name, ()) for shapes in self._shapes]
            for axis, sizes in enumerate(zip(*shapes, strict=False)):
                if len({*sizes}) > 1:
                    yield Extent(node.name, axis)

    def _evaluated(self, expression: Expression, run: int) -> int | None:
        if isinstance(expression, int):
            return expression
        if isinstance(expression, Read):
            return self._read(expression)
        if isinstance(expression, Extent):
            shape = self._shapes[run].get(expression.node, ())
            return shape[expression.axis] if expression.axis < len(shape) else None
        first, second = (self._evaluated(each, run) for each in (expression.first, expression.second))
        if first is None or second is None or (expression.operation in ("//", "%") and second == 0):
            return None
        return OPERATIONS[expression.operation](first, second)

    def _read(self, of: Read) -> int:
        value = getattr(self._model.get_submodule(of.module), of.attribute)
        return int(value if of.index is None else value[of.index])

    # ---- nodes that compute it -----------------------------------------------------------------------------

    def _made(self, rule: _Rule, node: fx.Node) -> fx.Node | int:
        value = self._node_of(rule.expression, node)
        for symbol, number, neutral in (("*", rule.times, 1), ("//", rule.over, 1), ("+", rule.plus, 0)):
            if number != neutral:
                value = self._insert(node, symbol, value, number)
        return value

    def _node_of(self, expression: Expression, node: fx.Node) -> fx.Node | int:
        if isinstance(expression, int):
            return expression
        if isinstance(expression, Read):
            return self._read(expression)
        if isinstance(expression, Extent):
            return self._extent(expression)
        assert isinstance(expression, Computed)
        first, second = (self._node_of(each, node) for each in (expression.first, expression.second))
        return self._insert(node, expression.operation, first, second)

    def _insert(self, node: fx.Node, symbol: str, first: Any, second: Any) -> fx.Node:
        with self._graph.inserting_before(node):
            return self._graph.call_function(_ARITHMETIC[symbol], (first, second))

    def _extent(self, of: Extent) -> fx.Node | int:
        """The node of a size; a number where it is the same in all runs."""
        sizes = {shapes[of.node][of.axis] for shapes in self._shapes}
        if len(sizes) == 1:
            return sizes.pop()
        if (of.node, of.axis) not in self._extents:
            source = self._nodes[of.node]
            after = source
            if source.op == "placeholder":  # behind all of them
                after = [each for each in self._graph.nodes if each.op == "placeholder"][-1]
            with self._graph.inserting_after(after):
                made = self._graph.call_function(torch.ops.aten.sym_size.int, (source, of.axis))
            self._extents[of.node, of.axis] = made
        return self._extents[of.node, of.axis]


def _fitting(expression: Expression, found: Sequence[int], values: Sequence[int]) -> _Rule | None:
    """The expression by itself, in proportion, or with a number added, where that is right everywhere."""
    if list(found) == list(values):
        return _Rule(expression)
    if len({*found}) < 2:
        return None
    if found[0] and values[0]:
        common = math.gcd(values[0], found[0])
        times, over = values[0] // common, found[0] // common
        if all(
            one * times % over == 0 and one * times // over == value
            for one, value in zip(found, values, strict=True)
        ):
            return _Rule(expression, times, over)
    low, high = min(found), max(found)
    at = dict(zip(found, values, strict=True))
    if (at[high] - at[low]) % (high - low) == 0:
        times = (at[high] - at[low]) // (high - low)
        plus = at[low] - times * low
        if len({*found}) > 2 and all(
            times * one + plus == value for one, value in zip(found, values, strict=True)
        ):
            return _Rule(expression, times, 1, plus)
    return None
