"""Constants of a captured graph, from a run on an unknown input, and the layers that read them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunekit.graph.captured_graph import Captured, argument, behind, is_written, memory_of, op_name
from prunekit.graph.coupling_graph import CouplingGraph, KeepMasks, Labelling
from prunekit.graph.labels import Flags, Ints
from prunekit.graph.ops import operator_of
from prunekit.graph.propagate import is_pointwise
from prunekit.graph.reference_run import Interpreter, exact

FOLDING = ("linear", "addmm", "conv1d", "conv2d", "conv3d", "convolution")
"""Operators whose bias can take what they make of a constant."""
_SAME = 1e-12  # constants that differ by less, relatively, do so by rounding

UNKNOWN = object()
"""Stands for a tensor of other than real numbers that depends on the input."""
Visit = Callable[[fx.Node, Mapping[fx.Node, Any]], None]


def run_on_unknown(graph: Captured, tensors: Mapping[str, Tensor], removed: KeepMasks, visit: Visit) -> None:
    """Run a graph in double precision on inputs of which nothing is known.

    Zero times something unknown is zero, so that a layer's output is constant where its weights are zero.
    What depends on the input is NaN. So is all that is not taken out: parameters that stay compute it, and
    they learn.

    Args:
        graph: in evaluation mode.
        tensors: values of parameters and buffers, by full name, in double precision.
        removed: what is to be taken out.
        visit: `(node, values)`, is called before each operator with the values of the nodes that it reads.
    """
    device = next((tensor.device for tensor in tensors.values()), torch.device("cpu"))
    given: list[Any] = []
    for node, (kind, name) in graph.placeholders.items():
        if kind == "user":
            given.append(_lost(node.meta.get("val"), device))
        else:
            value = tensors[graph.tensors[node.name]] if kind == "tensor" else graph.constants[name]
            given.append(value.double() if value.is_floating_point() else value)
    with torch.no_grad(), exact():
        _Run(graph, removed, visit, device).run(*given)


def depending_on_input(graph: Captured) -> set[fx.Node]:
    """The nodes that are computed from what the user gives."""
    return set(behind(graph.given, list(graph.graph.nodes)))


class _Run(Interpreter):
    """Computes with NaN for what is unknown."""

    def __init__(self, graph: Captured, removed: KeepMasks, visit: Visit, device: torch.device) -> None:
        super().__init__(graph.module)
        self._removed, self._visit, self._device = removed, visit, device
        self._computed = depending_on_input(graph)

    def run_node(self, node: fx.Node) -> Any:
        """A node's value, of which only what is taken out is known."""
        if node.op == "call_function":
            self._visit(node, self.env)
        found = super().run_node(node)
        if node.op != "call_function" or node not in self._computed:
            return found
        axes = self._removed(0, node.name)
        if isinstance(found, Tensor):
            found = _of_removed(found, axes[0] if axes else ())
        elif isinstance(found, (list, tuple)):
            each = [*axes, *[()] * len(found)]
            found = type(found)([_of_removed(value, each[place]) for place, value in enumerate(found)])
        if is_written(node) and isinstance(node.args[0], fx.Node):
            self._written(node, found)
        return found

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the node calls, with the entries unknown that depend on unknown ones."""
        node = self._node
        assert node is not None
        record = operator_of(node)
        if is_written(node) and isinstance(args[0], Tensor):
            args = (args[0].clone(), *args[1:])
        computed = node in self._computed and args and isinstance(args[0], Tensor)
        if computed and record.by_extent and record.by_extent(node) and args[0].is_floating_point():
            args = (args[0].masked_fill(args[0] != 0, torch.nan), *args[1:])
        leaves = pytree.tree_leaves((args, kwargs))
        unknown = [leaf.isnan() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        lost = any(leaf is UNKNOWN for leaf in leaves)
        if target is operator.getitem:
            return args[0][args[1]]
        if not lost and not any(bool(each.any()) for each in unknown):
            return super().call_function(target, args, kwargs)
        if record.drops and args[0] is not UNKNOWN:
            return args[0]
        if lost:
            return _lost(node.meta.get("val"), self._device)
        if record.factors is not None and all(isinstance(args[place], Tensor) for place in record.factors):
            return self._product(target, args, kwargs, record.factors, record.addend)
        if is_pointwise(record, target):
            found = super().call_function(target, *pytree.tree_map(_known, (args, kwargs)))
            if not found.is_floating_point():
                return UNKNOWN
            for each in unknown:
                found = found.masked_fill(each, torch.nan)
            return found
        if record.labels is None:
            return _lost(node.meta.get("val"), self._device)
        if op_name(node) == "batch_norm" and isinstance(args[1], Tensor):  # a scale of zero takes anything
            scale = (args[1] == 0).view(-1, *[1] * (args[0].dim() - 2))
            args = (args[0].masked_fill(args[0].isnan() & scale, 0), *args[1:])
        return pytree.tree_map(_real, super().call_function(target, args, kwargs))

    def _product(
        self,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        factors: tuple[int, int],
        addend: int | None,
    ) -> Any:
        """Sums of products: a term is known where both factors are, or one is zero."""
        first, second = (args[place] for place in factors)
        added = args[addend] if addend is not None and addend < len(args) else None

        def call(one: Tensor, other: Tensor, third: Tensor | None) -> Tensor:
            given = list(args)
            given[factors[0]], given[factors[1]] = one, other
            if isinstance(added, Tensor) and addend is not None:
                given[addend] = third
            found: Tensor = super(_Run, self).call_function(target, tuple(given), kwargs)
            return found

        none = None if added is None else torch.zeros_like(added)
        unknown = call(first.isnan().double(), (second != 0).double(), none)
        if bool(second.isnan().any()):
            unknown = unknown + call((first != 0).double(), second.isnan().double(), none)
        if added is not None and bool(added.isnan().any()):
            zeros = torch.zeros_like(first), torch.zeros_like(second)
            unknown = unknown + call(*zeros, added.isnan().double())
        found = call(_known(first), _known(second), None if added is None else _known(added))
        return found.masked_fill(unknown.abs() > 0.5, torch.nan)  # counts, to rounding

    def _written(self, node: fx.Node, found: Any) -> None:
        """What was written to has the node's value; of other views of the same memory nothing is known."""
        written = node.args[0]
        assert isinstance(written, fx.Node)
        memory = memory_of(written)
        for other in [each for each in self.env if each is not written and memory_of(each) is memory]:
            self.env[other] = _lost(other.meta.get("val"), self._device)
        self.env[written] = found


def _of_removed(value: Any, axes: tuple[Any, ...]) -> Any:
    """The value with NaN for everything that is not taken out."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    stays = torch.ones((), dtype=torch.bool, device=value.device)
    for axis, flags in enumerate(axes if len(axes) == value.dim() else ()):
        if flags is not None:
            shape = [-1 if place == axis else 1 for place in range(value.dim())]
            stays = stays & torch.from_numpy(flags).to(value.device).view(shape)
    return value.masked_fill(stays, torch.nan)


def _lost(val: Any, device: torch.device) -> Any:
    """What is known of values that are like these: nothing."""

    def of(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        shape = tuple(value.shape)
        return (
            torch.full(shape, torch.nan, dtype=torch.float64, device=device)
            if value.is_floating_point()
            else UNKNOWN
        )

    return pytree.tree_map(of, val)


def _known(value: Any) -> Any:
    """Real numbers with zeros for what is unknown."""
    real = isinstance(value, Tensor) and value.is_floating_point()
    return value.masked_fill(value.isnan(), 0) if real else value


def _real(value: Any) -> Any:
    return UNKNOWN if isinstance(value, Tensor) and not value.is_floating_point() else value


# ---- what reads constants ----------------------------------------------------------------------------------


class ConstantReaders:
    """What reads units, and whether it can do without their constants.

    Attributes:
        fine: for each group (units,) flags: all readers can.
        shifts: by the name of a bias, what goes into it.
    """

    def __init__(
        self, found: CouplingGraph, nothing_makes: Mapping[str, Tensor], biases: Mapping[fx.Node, str]
    ) -> None:
        self._found, self._nothing_makes, self._biases = found, nothing_makes, biases
        self._computed = depending_on_input(found.graphs[0])
        self.fine: dict[str, Tensor] = {}
        self.shifts: dict[str, Tensor] = {}

    def look(self, constant: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
        """Compute the constants of these units, and see what reads them."""
        self.fine = {name: torch.ones_like(flags) for name, flags in constant.items()}
        self.shifts = {}
        removed = {name: flags.nonzero().flatten().tolist() for name, flags in constant.items()}
        self._removed = self._found.keeping(removed)
        run_on_unknown(self._found.graphs[0], tensors, self._removed, self._look_at)

    def _look_at(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> None:
        for source in node.all_input_nodes:
            axes, value = self._removed(0, source.name), values[source]
            if source not in self._computed or len(axes) != 1 or isinstance(value, (list, tuple)):
                continue
            summed, weight = self._summed(node, source), None
            for axis, flags in enumerate(axes[0]):
                if flags is None:
                    continue
                if axis == summed:
                    weight = _weight(node, values)
                self._check(node, source, value, axis, weight if axis == summed else None)
                if axis == summed and node in self._biases:
                    self._shift(self._biases[node], weight, value, axis, torch.from_numpy(~flags))

    def _summed(self, node: fx.Node, source: fx.Node) -> int | None:
        """The axis that a layer of constant weights sums over."""
        record = operator_of(node)
        if record.factors is None or not record.mixes or source is not node.args[record.factors[0]]:
            return None
        weight = node.args[record.factors[1]]
        if not isinstance(weight, fx.Node) or weight in self._computed or grouped(node):
            return None
        spatial = int(weight.meta["val"].dim()) - 2
        fits = spatial > 0 if record.convolves else spatial == 0
        return int(source.meta["val"].dim()) - spatial - 1 if fits else None

    def _check(self, node: fx.Node, source: fx.Node, value: Any, axis: int, weight: Tensor | None) -> None:
        """Of the units along an axis of what a node reads, those that it cannot do without are not fine.

        Args:
            node: what reads.
            source: what it reads.
            value: what is known of that.
            axis: along which the units lie.
            weight: (outputs, entries along the axis, ...) weights with which it sums over the axis, if so.
        """
        zero, same = _entries(value, axis, int(source.meta["val"].shape[axis]))
        fits = zero.copy()
        if weight is not None:
            fits |= ~(weight.transpose(0, 1).flatten(1) != 0).any(1).cpu().numpy()  # it does not read them
            fits |= same & (node in self._biases)
        for labelling, gone in zip(self._found.labellings, self._removed.gone, strict=True):
            labels = labelling.nodes[0][source.name][0][axis] if source.name in labelling.nodes[0] else None
            if labels is None:
                continue
            read = gone[labels] & ~fits
            if weight is None:
                read &= ~np.isin(_units_of(labelling, labels), units_at(labelling, node.name))
            for number in np.unique(labelling.group[labels[read]]).tolist():
                name = self._found.plan.groups[number].name
                units = torch.from_numpy(labelling.unit[labels])
                bad = torch.from_numpy(read & (labelling.group[labels] == number))
                bad &= torch.from_numpy(same) | ~self._nothing_makes[name][units.where(bad, 0)]
                self.fine[name][units[bad]] = False

    def _shift(self, bias: str, weight: Tensor | None, value: Any, axis: int, removed: Tensor) -> None:
        """Add up what a layer makes of its constant inputs."""
        assert weight is not None
        weight = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        index = removed.nonzero().flatten().to(weight.device)
        constants = value.movedim(axis, 0)[index].flatten(1)[:, 0].nan_to_num(nan=0.0)
        self.shifts[bias] = weight[:, index] @ constants


def _weight(node: fx.Node, values: Mapping[fx.Node, Any]) -> Tensor:
    """(outputs, inputs, ...) the weights of a layer."""
    factors = operator_of(node).factors
    assert factors is not None
    weight: Tensor = values[node.args[factors[1]]]  # type: ignore[index]
    forward = op_name(node) in FOLDING and op_name(node) != "addmm"
    backward = op_name(node) == "convolution" and bool(argument(node, "transposed"))
    return weight if forward and not backward else weight.transpose(0, 1)


def grouped(node: fx.Node) -> bool:
    """Whether a node is a convolution in several groups."""
    return operator_of(node).convolves and argument(node, "groups") != 1


def _units_of(labelling: Labelling, labels: Ints) -> Ints:
    """One number for the group and the unit that each label stands for."""
    units: Ints = labelling.group[labels] << 32 | labelling.unit[labels]
    return units


def units_at(labelling: Labelling, node: str) -> Ints:
    """The units that lie along some axis of a node's values, as numbers."""
    every = [labels for axes in labelling.nodes[0].get(node, ()) for labels in axes if labels is not None]
    return _units_of(labelling, np.concatenate([*every, np.zeros(0, dtype=np.int64)]))


def _entries(value: Any, axis: int, size: int) -> tuple[Flags, Flags]:
    """For each entry along an axis: whether all its numbers are zero, and whether they are one number."""
    if not isinstance(value, Tensor):
        return np.zeros(size, dtype=bool), np.zeros(size, dtype=bool)
    rows = value.movedim(axis, 0).flatten(1).double()
    first = rows[:, :1]
    same = rows.isfinite().all(1) & ((rows - first).abs() <= _SAME * first.abs()).all(1)
    return (rows == 0).all(1).cpu().numpy(), same.cpu().numpy()
