"""An exported graph for batches of one size, made to take batches of any size.

A graph that was captured holds the number of examples as a constant, wherever the network reshapes, expands
or makes tensors by it. The graph is run side by side at its own size and at another one, node by node: what
differs in shape holds the examples, and along which axis. Sizes that are written for that axis become free,
and where a tensor that depends on no input has one slice for each example, all of them alike, the first is
taken for all.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments, examples_in
from prunekit.errors import ModelError, shown
from prunekit.graph.captured import Captured, GraphModel, module_of, op_name
from prunekit.graph.other_inputs import drawn
from prunekit.graph.proof import tensors_in
from prunekit.modes import evaluating

_RESHAPES = {"view": 1, "reshape": 1, "_unsafe_view": 1, "unflatten": 2}
_KEEPS_ORDER = (*_RESHAPES, "flatten", "squeeze", "unsqueeze")
_MOST_WAYS = 64
"""Ways to repeat operands that are tried at one node."""
_CLOSE = 1e-4
"""Largest difference, a share of the largest output or of 1, between a batch and its examples in turn."""


@dataclass(frozen=True)
class _Spread:
    """The axis along which a tensor holds the examples, and how many entries of it lie around each one's."""

    axis: int
    outer: int = 1


def any_batch(model: GraphModel, example_inputs: Inputs) -> GraphModel:
    """A network of graphs that takes batches of any size; in evaluation mode only.

    It is run on drawn inputs: the examples of a batch have to give what they give in batches of the size that
    the graph was captured with. Parameters and buffers are the same objects.

    Args:
        model: the network, in evaluation mode.
        example_inputs: of the shapes that it takes.

    Raises:
        InputError: if the inputs have other shapes.
        ModelError: naming the operation that holds the batch to one size, or if examples act on each other.
    """
    graph = model.graphs[0]
    flat = graph.flattened(*arguments(example_inputs))
    count = examples_in(flat)
    other = 2 * count + 1
    with evaluating(model), torch.no_grad():
        freed = _Freed(model, graph, flat, count, other)
        result = GraphModel(model, [freed.captured()])
        _check(model, result, example_inputs, freed.outputs, count, other)
    result.train(False)
    return result


def _taken(inputs: Any, count: int, rows: Tensor) -> Any:
    """These of so many examples; what has no axis of them stays."""
    return pytree.tree_map_only(Tensor, lambda each: each[rows] if _holds(each, count) else each, inputs)


def _holds(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == count


class _Freed:
    """The graph with free sizes, made in one pass over its nodes.

    Attributes:
        graph: as it is by now.
        outputs: where each output that is a tensor holds the examples; None where it does not.
    """

    def __init__(
        self, model: GraphModel, captured: Captured, flat: Sequence[Any], count: int, other: int
    ) -> None:
        self._captured, self._count, self._other = captured, count, other
        self._more = torch.arange(other) % count
        self.graph = copy.deepcopy(captured.graph)
        self._spread: dict[fx.Node, _Spread] = {}
        self._values: dict[fx.Node, tuple[Any, Any]] = {}  # at both sizes
        self.outputs: list[_Spread | None] = []
        self._batch = self._entered(model, flat)
        for node in list(self.graph.nodes):
            if node.op == "get_attr":
                self._values[node] = (captured.named[str(node.target)],) * 2
            elif node.op == "call_function" and node not in self._values:
                self._call(node)
                self._forget(node)
        results = pytree.tree_leaves(self.graph.output_node().args[0])
        self.outputs = [self._spread.get(each) for each in results if isinstance(each, fx.Node)]

    def captured(self) -> Captured:
        """The graph, whose inputs may have any size."""
        for node in self.graph.find_nodes(op="placeholder"):
            node.meta.pop("val", None)  # by which inputs are checked
        self.graph.lint()
        return replace(self._captured, graph=self.graph)

    def _entered(self, model: GraphModel, flat: Sequence[Any]) -> fx.Node:
        """The node of the number of examples; placeholders get their values."""
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        given = iter(flat)
        first: fx.Node | None = None
        for node, (kind, name) in zip(
            self.graph.find_nodes(op="placeholder"), self._captured.inputs, strict=True
        ):
            if kind == "user":
                value = next(given)
                self._values[node] = value, _taken(value, self._count, self._more)
                if _holds(value, self._count):
                    first = first or node
                    self._spread[node] = _Spread(0)
            else:
                value = self._captured.constants[name] if kind == "constant" else tensors[name]
                # a graph may write into its constants
                self._values[node] = (value, value) if kind == "tensor" else (value.clone(), value.clone())
            last = node
        assert first is not None
        with self.graph.inserting_after(last):
            size = self.graph.call_function(torch.ops.aten.sym_size.int, (first, 0))
        self._values[size] = self._count, self._other
        return size

    def _call(self, node: fx.Node) -> None:
        self._free_sizes(node)
        known = self._run(node, 0)
        try:
            found = self._run(node, 1)
        except Exception as error:  # sizes that do not fit each other
            if not self._repeated(node):
                raise self._refusal(node) from error
            found = self._run(node, 1)
        self._values[node] = known, found
        shapes = [
            [tuple(each.shape) for each in pytree.tree_leaves(those) if isinstance(each, Tensor)]
            for those in (known, found)
        ]
        if len(shapes[0]) == 1:
            spread = self._spread_of(node, *shapes[0], *shapes[1])
            if spread is not None:
                self._spread[node] = spread
        elif shapes[0] != shapes[1]:
            sources = [self._spread[each] for each in node.all_input_nodes if each in self._spread]
            self._spread[node] = sources[0] if sources else _Spread(0)

    def _spread_of(self, node: fx.Node, known: tuple[int, ...], found: tuple[int, ...]) -> _Spread | None:
        """Where a node's value holds the examples."""
        if len(known) != len(found):
            raise self._refusal(node)
        changed = [axis for axis, pair in enumerate(zip(known, found, strict=True)) if pair[0] != pair[1]]
        sources = [each for each in node.all_input_nodes if each in self._spread]
        if not changed:
            return None
        if len(changed) > 1 or known[changed[0]] * self._other != found[changed[0]] * self._count:
            raise self._refusal(node)
        axis = changed[0]
        outer = self._spread[sources[0]].outer if sources else 1
        if sources and op_name(node) in _KEEPS_ORDER:
            outer = self._around(sources[0]) // prod(known[:axis])
        return _Spread(axis, outer)

    def _around(self, node: fx.Node) -> int:
        """How many entries lie around each example's in a tensor, whose order is that of its axes."""
        spread = self._spread[node]
        return prod(self._values[node][0].shape[: spread.axis]) * spread.outer

    def _free_sizes(self, node: fx.Node) -> None:
        """Let sizes follow from the number of examples where the node's tensor holds them."""
        name = op_name(node)
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node) or source not in self._spread:
            return
        if name in _RESHAPES:
            place = _RESHAPES[name]
            sizes, shape = list(node.args[place]), tuple(self._run(node, 0).shape)  # type: ignore[arg-type]
            before = int(node.args[1]) % self._values[source][0].dim() if name == "unflatten" else 0  # type: ignore[arg-type]
            axis = self._axis_of(self._around(source), shape) - before
            if 0 <= axis < len(sizes) and sizes[axis] != -1:
                sizes[axis] = self._size(node, shape[axis + before]) if -1 in sizes else -1
                node.update_arg(place, sizes)
        elif name == "expand":
            sizes = list(node.args[1])  # type: ignore[arg-type]
            axis = self._spread[source].axis + len(sizes) - self._values[source][0].dim()
            sizes[axis] = -1
            node.update_arg(1, sizes)

    def _axis_of(self, around: int, shape: tuple[int, ...]) -> int:
        """The axis of a reshaped tensor that gets the examples; past the last where there is none.

        Of a single example it is the axis of one entry, or the one that has taken that in.
        """
        before = [prod(shape[:axis]) for axis in range(len(shape))]
        if self._count == 1:
            exact = [axis for axis, size in enumerate(shape) if size == 1 and before[axis] == around]
            if exact:
                return exact[0]
        for axis, size in enumerate(shape):
            last = before[axis] * size // self._count
            if before[axis] <= around <= last and size % self._count == 0:
                return axis
        return len(shape)

    def _size(self, node: fx.Node, size: int) -> fx.Node:
        """A size in proportion to the number of examples."""
        times = size // self._count
        if times == 1:
            return self._batch
        return self._insert(node, operator.mul, (self._batch, times))

    def _repeated(self, node: fx.Node) -> bool:
        """Let operands that depend on no input have a slice for each example; whether that helps."""
        operands = [
            each
            for each in node.all_input_nodes
            if each not in self._spread and isinstance(self._values[each][0], Tensor)
        ]
        ways = [[None, *self._alike(self._values[each][0])] for each in operands]
        for way in itertools.islice(itertools.product(*ways), _MOST_WAYS):
            chosen = {each: axis for each, axis in zip(operands, way, strict=True) if axis is not None}
            if not chosen:
                continue
            trial = {
                each: (
                    self._values[each][0],
                    _for_all(self._values[each][1], axis, self._other),
                )
                for each, axis in chosen.items()
            }
            try:
                self._run(node, 1, trial)
            except Exception:  # sizes that do not fit each other
                continue
            for each, axis in chosen.items():
                first = self._insert(node, torch.ops.aten.slice.Tensor, (each, axis, 0, 1))
                sizes: list[Any] = [-1] * self._values[each][0].dim()
                sizes[axis] = self._batch
                spread = self._insert(node, torch.ops.aten.expand.default, (first, sizes))
                self._spread[spread] = _Spread(axis)
                node.replace_input_with(each, spread)
            return True
        return False

    def _alike(self, value: Tensor) -> Iterator[int]:
        """The axes along which a tensor has one slice for each example, all of them alike."""
        for axis, size in enumerate(value.shape):
            if size == self._count and torch.equal(value, value.narrow(axis, 0, 1).expand_as(value)):
                yield axis

    def _insert(self, node: fx.Node, target: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        with self.graph.inserting_before(node):
            made = self.graph.call_function(target, args)
        self._values[made] = self._run(made, 0), self._run(made, 1)
        return made

    def _run(self, node: fx.Node, which: int, instead: dict[fx.Node, tuple[Any, Any]] | None = None) -> Any:
        """What a node gives at the graph's own number of examples (0) or at the other one (1)."""

        def value(each: fx.Node) -> Any:
            return (instead or {}).get(each, self._values[each])[which]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    def _forget(self, node: fx.Node) -> None:
        """Let go of large values that nothing will read."""
        for each in node.all_input_nodes:
            if each in self._spread and all(user in self._values for user in each.users):
                self._values[each] = None, None

    def _refusal(self, node: fx.Node) -> ModelError:
        place = module_of(node)
        return ModelError(
            f"the network is an exported graph for batches of {self._count} only, to which {op_name(node)!r}"
            f"{f' in {shown(place)}' if place else ''} holds it: export it before it is shrunk"
        )


def _for_all(value: Tensor, axis: int, count: int) -> Tensor:
    """The first slice along an axis, so many times."""
    sizes = list(value.shape)
    sizes[axis] = count
    return value.narrow(axis, 0, 1).expand(sizes)


def _check(
    model: GraphModel,
    result: nn.Module,
    inputs: Inputs,
    spreads: Sequence[_Spread | None],
    count: int,
    other: int,
) -> None:
    """Hold what a batch gives against its examples in batches of the size that the graph was captured with.

    Raises:
        ModelError: if they differ.
    """
    args, kwargs = drawn(_taken(arguments(inputs), count, torch.arange(other) % count))
    found = tensors_in(result(*args, **kwargs), real=False)
    for start in range(0, other, count):
        rows = torch.arange(start, start + count) % other
        part_args, part_kwargs = _taken((args, kwargs), other, rows)
        wanted = tensors_in(model(*part_args, **part_kwargs), real=False)
        for value, expected, spread in zip(found, wanted, spreads, strict=True):
            if spread is not None and spread.outer != 1:
                raise ModelError("an output of the network holds its examples in no axis of their own")
            part = value if spread is None else value.index_select(spread.axis, rows)
            bound = _CLOSE * max(1.0, float(expected.abs().max()) if expected.numel() else 1.0)
            if part.shape != expected.shape or not torch.allclose(part, expected, rtol=0, atol=bound):
                raise ModelError(
                    f"the network is an exported graph for batches of {count} only: examples give something "
                    "else in a batch of another size"
                )
