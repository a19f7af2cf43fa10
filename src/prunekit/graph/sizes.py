"""Sizes after units are taken out: in the attributes of modules, and written into exported graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import fx, nn

from prunekit.errors import InputError
from prunekit.graph.attention_sizes import attention_sizes
from prunekit.graph.captured_graph import Captured, argument, attributes_of, module_of, op_name, shape_of
from prunekit.graph.coupling_graph import KeepMasks
from prunekit.graph.ops import OPERATORS, operator_of
from prunekit.graph.ops.moves import RESHAPED
from prunekit.graph.ops.registry import Keeps, Kept
from prunekit.graph.places import CodePlace, line_at, place_in, short
from prunekit.graph.size_equations import Equation, evaluated, reads_of, solved
from prunekit.graph.size_run import Computed, Extent, Place, Read, SizeUses, is_size
from prunekit.targets import weight_of


def corrected(graph: Captured, keeping: KeepMasks, number: int) -> Captured:
    """A copy of a graph with its constants made to fit; checks of dtypes and sizes are left out.

    Args:
        graph: as captured.
        keeping: what stays of every node.
        number: of the graph.

    Raises:
        InputError: where nothing would be left of a tensor.
    """
    smaller, named = _corrected(graph.graph, graph.named, partial(keeping, number), "")
    return replace(graph, graph=smaller, named=named)


def _corrected(
    graph: fx.Graph,
    named: Mapping[str, Any],
    keeping: Callable[[str], Kept],
    prefix: str,
) -> tuple[fx.Graph, dict[str, Any]]:
    """Likewise, of a graph whose nodes' names begin with a prefix, with what its `get_attr` nodes name."""
    smaller, named = copy.deepcopy(graph), dict(named)

    def keeps(node: fx.Node) -> Kept:
        return keeping(f"{prefix}{node.name}")

    for node in list(smaller.nodes):
        _not_empty(node, keeps)
        if node.op != "call_function":
            continue
        if op_name(node).startswith(("_assert", "sym_constrain")):
            smaller.erase_node(node)
            continue
        for arg in node.args:
            if isinstance(arg, fx.Node) and arg.op == "get_attr":
                inner = named[str(arg.target)]
                if isinstance(inner, fx.GraphModule):
                    inside = attributes_of(inner.graph, inner)
                    below, inside = _corrected(inner.graph, inside, keeping, f"{prefix}{node}/")
                    named[str(arg.target)] = fx.GraphModule(inside, below)
        resize = operator_of(node).resize
        if resize is not None:
            resize(node, keeps)
        node.target = RESHAPED.get(node.target, node.target)
    return smaller, named


def _not_empty(node: fx.Node, keeps: Keeps) -> None:
    for axes in keeps(node):
        for axis, flags in enumerate(axes):
            if flags is not None and not flags.any():
                module = module_of(node)
                raise InputError(
                    f"these units are all that axis {axis} of {node.name!r}"
                    f"{f' in {module!r}' if module else ''} has: at least one must stay"
                )


# what PyTorch's layers and Conv1D of transformers call theirs
LAYERS = (
    "out_features", "in_features", "out_channels", "in_channels", "groups", "num_features", "num_embeddings",
    "embedding_dim", "num_parameters", "nx", "nf", "normalized_shape", "num_groups", "num_channels",
)  # fmt: skip


CHANGED = "_resized"
"""The attribute of a module that names others of its attributes: those that surgery has changed."""


def changed(module: nn.Module) -> tuple[str, ...]:
    """The names of the attributes, besides those of PyTorch's layers, that surgery has changed."""
    return tuple(vars(module).get(CHANGED, ()))


def size_attributes(model: nn.Module) -> dict[str, dict[str, Any]]:
    """The attributes that surgery has changed, or may change in PyTorch's layers, by module and name.

    They are whole numbers, or lists of such.
    """
    found: dict[str, dict[str, Any]] = {}
    for place, module in model.named_modules(remove_duplicate=False):
        for name in dict.fromkeys((*LAYERS, *changed(module))):
            value = vars(module).get(name)
            if is_size(value):
                found.setdefault(place, {})[name] = value if isinstance(value, int) else list(value)
    return found


@dataclass(frozen=True)
class Unmet:
    """A whole number among the arguments of a node that the network's code does not give.

    Attributes:
        node: in the graph; empty where a whole module cannot take its new sizes.
        place: among its arguments.
        line: of the code.
        module: that cannot take its new sizes.
    """

    node: str
    place: Place
    line: str
    module: str = ""


def sizes(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    graphs: Sequence[Captured],
    keeping: KeepMasks,
) -> tuple[dict[tuple[str, str], Any], tuple[Unmet, ...]]:
    """New values by (module, attribute), of those that change, and what no values of attributes give.

    Args:
        model: the network as it is.
        shapes: new shapes of the parameters and buffers that change.
        graphs: the captured graphs with corrected constants.
        keeping: what stays of every node.
    """
    found: dict[tuple[str, str], Any] = {}
    read, unmet = _read(model, graphs[0], partial(keeping, 0))
    of_attention, unfit = attention_sizes(model, shapes, graphs[0], partial(_kept_of, keeping, 0))
    for (place, attribute), value in [
        *read.items(),
        *_in_graphs(model, graphs, keeping),
        *_by_shape(model, shapes, graphs),
        *of_attention,
    ]:
        before = getattr(model.get_submodule(place), attribute, None)
        if before is not None and before != value:
            found[(place, attribute)] = value
    why = ": its heads must make up the width of what it is given"
    lines = {place: short(_line_in(graphs[0], place)) for place in unfit}
    return found, (*unmet, *(Unmet("", (), f" in {place!r}{lines[place]}{why}", place) for place in unfit))


def _line_in(graph: Captured, module: str) -> CodePlace | None:
    """The line of the network's code that calls a module."""
    nodes = (node for node in graph.graph.nodes if f"{module_of(node)}.".startswith(f"{module}."))
    return next(filter(None, map(place_in, nodes)), None)


def _by_shape(
    model: nn.Module,
    shapes: Mapping[str, tuple[int, ...]],
    graphs: Sequence[Captured],
) -> list[tuple[tuple[str, str], Any]]:
    groups = {
        graph.tensors.get(_weight_read(node)): argument(node, "groups")
        for graph in graphs
        for node in graph.graph.nodes
        if operator_of(node).convolves
    }
    found: list[tuple[tuple[str, str], Any]] = []
    for name, shape in shapes.items():
        place, tensor = weight_of(name)
        module = model.get_submodule(place)
        for attribute, value in sizes_of_module(module, tensor, shape, groups.get(name) or 1).items():
            found.append(((place, attribute), value))
    return found


def _weight_read(node: fx.Node) -> str:
    """The name of the node of a convolution's weight, or of what a weight norm makes it of."""
    weight: Any = node.args[1]
    return str(weight.args[0] if op_name(weight) == "_weight_norm" else weight)


def sizes_of_module(module: nn.Module, short: str, shape: tuple[int, ...], groups: int) -> dict[str, Any]:
    """Attributes of a module that follow from the shape of one of its tensors; see `Operator`."""
    known = (record.module_sizes for record in OPERATORS.values() if record.module_sizes)
    return next((found for each in known if (found := each.of(module, short, shape, groups))), {})


def _in_graphs(
    model: nn.Module, graphs: Sequence[Captured], keeping: KeepMasks
) -> list[tuple[tuple[str, str], Any]]:
    """Of modules whose sizes may only stand in the graph, such as norms without parameters."""
    found: list[tuple[tuple[str, str], Any]] = []
    modules = dict(model.named_modules(remove_duplicate=False))
    for number, graph in enumerate(graphs):
        for node in graph.graph.nodes:
            place, repeated = module_of(node), operator_of(node).attributes
            owner = modules.get(place)
            if owner is not None and repeated is not None:
                new = repeated(owner, node, partial(_kept_of, keeping, number))
                found.extend(((place, name), value) for name, value in new.items())
    return found


def _kept_of(keeping: KeepMasks, number: int, node: fx.Node) -> Kept:
    return keeping(number, node.name)


def _read(
    model: nn.Module, graph: Captured, keeping: Callable[[str], Kept]
) -> tuple[dict[tuple[str, str], Any], tuple[Unmet, ...]]:
    """Of modules whose code hands them to PyTorch's functions, by themselves or in expressions."""
    nodes = {node.name: node for node in graph.graph.nodes}
    uses = graph.uses or SizeUses()

    def extent(of: Extent) -> int:
        flags = next(iter(keeping(of.node)), ())
        stays = flags[of.axis] if len(flags) > of.axis else None
        return shape_of(nodes[of.node])[of.axis] if stays is None else int(stays.sum())

    wanted = [(use, _value_at(nodes.get(use.node), use.place)) for use in uses.arguments]
    equations: list[Equation] = [(use.expression, value) for use, value in wanted if value is not None]
    equations += [(Computed("-", *pair), 0) for pair in uses.equal]
    before: dict[Read, int] = {}
    for read in set().union(*(reads_of(expression) for expression, _ in equations)):
        value = getattr(model.get_submodule(read.module), read.attribute)
        before[read] = value if read.index is None else value[read.index]
    found: dict[tuple[str, str], Any] = {}
    new = solved(equations, before, extent)
    for read, value in new.items():
        key = read.module, read.attribute
        whole = found.get(key, getattr(model.get_submodule(read.module), read.attribute))
        if read.index is None:
            found[key] = value
        else:
            found[key] = type(whole)([*whole[: read.index], value, *whole[read.index + 1 :]])
    after = {**before, **new}
    unmet = (
        Unmet(use.node, use.place, line_at(use.line))
        for use, value in wanted
        if value is not None and evaluated(use.expression, after, extent) != value
    )
    return found, tuple(unmet)


def _value_at(node: fx.Node | None, place: Place) -> int | None:
    """A whole number among the arguments of a node; pieces of one size are of that size."""
    value: Any = node
    if node is None:
        return None
    for step in place:
        if isinstance(step, str):
            value = node.kwargs.get(step)
            continue
        holder = node.args if value is node else value
        value = holder[step] if isinstance(holder, (tuple, list)) and len(holder) > step else None
    if isinstance(value, (tuple, list)) and len({*value[:-1]}) == 1 and value[-1] <= value[0]:
        return int(value[0])
    return value if isinstance(value, int) and not isinstance(value, bool) else None
