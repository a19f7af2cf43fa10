"""Graphs for inputs of one shape, made to take inputs of other sizes, too.

A graph holds sizes as numbers. The same network's graphs for inputs of other sizes tell which of these
change, and these are computed (`free_sizes.py`). An axis stays bound to its size where a graph is another one
there, or a number is explained by nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.errors import InputError, ModelError
from prunekit.graph.capture import captured
from prunekit.graph.captured_graph import Captured, GraphModel, op_name
from prunekit.graph.conversion import mark_types
from prunekit.graph.copies import copy_of
from prunekit.graph.coupling_graph import CouplingGraph
from prunekit.graph.free_axes import Axis, FreeAxes, free_axes, with_sizes
from prunekit.graph.free_sizes import FreedGraph, Graphs, HeldError, SizedRun, differing, line_of
from prunekit.graph.surgery import Cut, Operation, checked, operation
from prunekit.modes import evaluating
from prunekit.seeds import keeping_generators, seeded


def of_any_size(
    result: GraphModel,
    model: nn.Module,
    example_inputs: Inputs,
    flags: Mapping[str, Tensor],
    work: Operation,
    analysed: Callable[..., CouplingGraph],
) -> GraphModel:
    """A smaller network of graphs for inputs of all sizes that the original takes; see `any_size`.

    Args:
        result: the graphs for inputs of one shape.
        model: the original.
        example_inputs: of that shape.
        flags: of the groups that lost units.
        work: what took them out.
        analysed: gives the plan with graphs for other inputs.
    """

    def graphs_for(inputs: Inputs) -> Graphs:
        other = analysed(inputs, decided=False)
        there = operation(model, other, checked(other.plan, flags))
        if not _same_cut(work.cut, there.cut):
            raise ModelError("other units are coupled for another size")
        return there.graphs

    return any_size(result, model, example_inputs, graphs_for)


def _same_cut(cut: Cut, other: Cut) -> bool:
    return cut.tensors.keys() == other.tensors.keys() and all(
        axes.keys() == other.tensors[name].keys()
        and all(torch.equal(stays, other.tensors[name][axis]) for axis, stays in axes.items())
        for name, axes in cut.tensors.items()
    )


def any_size(
    result: GraphModel, model: nn.Module, example_inputs: Inputs, graphs_for: Callable[[Inputs], Graphs]
) -> GraphModel:
    """A network of graphs that takes inputs of all sizes that the original takes.

    Converted to another type, it computes in that as the original does.

    Args:
        result: the graphs for inputs of one shape.
        model: the original.
        example_inputs: of that shape.
        graphs_for: gives the graphs for inputs of another shape, or raises an InputError or a ModelError.

    Returns:
        The same network, with the same parameters, with free axes where they could be found.
    """
    mark_types([each.graph for each in result.graphs], model, partial(_graphs_in, model, example_inputs))
    axes = free_axes(model, example_inputs)
    held: dict[Axis, str] = {}
    while axes:
        try:
            runs = _recorded(result, example_inputs, axes, graphs_for)
            freed = [
                FreedGraph(model, runs, number).captured(axes, held) for number in range(len(runs[0].graphs))
            ]
            found = GraphModel(result, freed)
            _check(found, runs)
        except HeldError as error:
            held |= dict.fromkeys(axes[error.number].axes, error.why)
            axes = [each for number, each in enumerate(axes) if number != error.number]
            continue
        return found
    return result


def _graphs_in(model: nn.Module, inputs: Inputs, own: torch.dtype, other: torch.dtype) -> list[fx.Graph]:
    """The graphs of a network in another type, on inputs of that type."""

    def converted(value: Tensor) -> Tensor:
        return value.to(other) if value.dtype == own else value

    given = pytree.tree_map_only(Tensor, converted, inputs)
    return [each.graph for each in captured(copy_of(model).to(other), given)]


def _recorded(
    result: GraphModel, inputs: Inputs, axes: Sequence[FreeAxes], graphs_for: Callable[[Inputs], Graphs]
) -> list[SizedRun]:
    """The graphs at their own sizes, with one of the axes of another size at a time, and all together."""
    ways: list[tuple[tuple[int, ...], dict[Axis, int]]] = [((), {})]
    for number, each in enumerate(axes):
        ways += [((number,), each.at(which)) for which in (0, 1)]
    every: dict[Axis, int] = {}
    for number, each in enumerate(axes):
        every |= each.at(number % 2)
    if len(axes) > 1:
        ways.append((tuple(range(len(axes))), every))
    runs: list[SizedRun] = []
    for changed, sizes in ways:
        given = with_sizes(inputs, sizes) if sizes else inputs
        try:
            graphs = graphs_for(given) if sizes else result.graphs
            model = GraphModel(result, graphs) if sizes else result
            found = SizedRun(given, graphs, changed, _shapes(model, given), model)
        except (InputError, ModelError, RuntimeError) as error:
            raise HeldError(changed[-1] if changed else len(axes) - 1, str(error)) from error
        runs.append(found)
        if sizes:
            for number, pair in enumerate(zip(runs[0].graphs, graphs, strict=False)):
                _check_alike(*pair, changed[-1], len(runs[0].graphs) != len(graphs), number)
    return runs


def _check_alike(first: Captured, other: Captured, axis: int, other_modes: bool, number: int) -> None:
    """Hold an axis whose graph is another one than numbers can make it."""
    nodes, others = list(first.graph.nodes), list(other.graph.nodes)
    if other_modes or len(nodes) != len(others) or first.named.keys() != other.named.keys():
        raise HeldError(axis, "the network does something else for another size")
    same = dict(zip(others, nodes, strict=True))
    for node, there in zip(nodes, others, strict=True):
        mapped = fx.node.map_arg((there.args, there.kwargs), same.__getitem__)
        other_call = node.op != there.op or (node.op == "call_function" and node.target != there.target)
        if other_call or node.op == "get_attr":
            raise HeldError(axis, "the network does something else for another size" + line_of(node))
        for _, before, after in differing((node.args, node.kwargs), mapped, ()):
            if type(before) is not int or type(after) is not int:
                raise HeldError(
                    axis, f"{op_name(node)} takes {_short(after)} in place of {_short(before)}{line_of(node)}"
                )
    for name, value in first.constants.items():
        there = other.constants.get(name)
        if there is None or value.shape != there.shape or not torch.equal(value, there):
            raise HeldError(axis, f"a constant of the shape {tuple(value.shape)} is made for one size")


def _short(value: Any) -> str:
    return str(value)[:40]


def _shapes(model: GraphModel, inputs: Inputs) -> tuple[Mapping[str, tuple[int, ...]], ...]:
    """The shapes of what the nodes of each graph give; nothing of the network changes."""
    found: list[dict[str, tuple[int, ...]]] = []
    args, kwargs = arguments(inputs)
    held = {id(each) for each in model.buffers()}

    def run(_: int, graph: fx.GraphModule, given: list[Any]) -> Any:
        here: dict[str, tuple[int, ...]] = {}
        found.append(here)
        own = [each.clone() if isinstance(each, Tensor) and id(each) in held else each for each in given]
        return _Shaped(graph, here).run(*own)

    with keeping_generators(), torch.no_grad():
        for number in range(len(model.graphs)):
            model.run_graph(number, args, kwargs, run)
    return tuple(found)


class _Shaped(fx.Interpreter):
    """A run of a graph that writes down the shapes of tensors."""

    def __init__(self, graph: fx.GraphModule, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__(graph)
        self.extra_traceback = False
        self._shapes = shapes

    def run_node(self, n: fx.Node) -> Any:
        """What the node gives."""
        found = super().run_node(n)
        if isinstance(found, Tensor):
            self._shapes[n.name] = tuple(found.shape)
        return found


def _check(found: GraphModel, runs: Sequence[SizedRun]) -> None:
    """The freed graphs give, at all sizes, exactly what the graphs for these sizes give."""
    with evaluating(found), torch.no_grad():
        for run in runs:
            args, kwargs = arguments(run.inputs)
            with seeded(0):
                given = found.run_graph(0, args, kwargs, lambda _, graph, values: graph(*values))
            with seeded(0):
                wanted = run.model.run_graph(0, args, kwargs, lambda _, graph, values: graph(*values))
            for one, other in zip(given, wanted, strict=True):
                if isinstance(one, Tensor) and not torch.equal(one.nan_to_num(), other.nan_to_num()):
                    raise HeldError(run.changed[-1] if run.changed else 0, "another size gives other values")
