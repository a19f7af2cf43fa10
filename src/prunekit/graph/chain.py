"""A chain of layers: its operations in order, and the units that its layers hand to each other.

`chain_view.py` reads one from a network; here is what an operation does to units, what a chain is, and how
operations in a row are linked.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from prunekit.errors import InputError, ModelError, instead
from prunekit.graph.captured_graph import argument, is_written, op_name
from prunekit.graph.coupling_graph import INPUT, GroupPlan, Member
from prunekit.graph.ops import moves, operator_of, pointwise, reductions, spatial
from prunekit.graph.propagate import is_pointwise
from prunekit.graph.rows import LAYERS

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_SHAPED = "lays units out in a new shape"
_STATISTICS = "has statistics that mix units, so that a unit that is off still counts"
_UNKNOWN = "is none of the operations that a chain can hold"
Function = Callable[[Tensor], Tensor]


class Kind(Enum):
    """The ways in which an operation treats units.

    LAYER mixes all units into new ones; NORM has numbers of its own for each unit; POOL works on
    the positions of each unit; FLATTEN lays positions beside units; POINTWISE sees each number alone; SIDE
    mixes units and may only stand before the first layer or after the last one.
    """

    LAYER = auto()
    NORM = auto()
    POOL = auto()
    FLATTEN = auto()
    POINTWISE = auto()
    SIDE = auto()


@dataclass(frozen=True)
class Stage:
    """One operation of a chain.

    Attributes:
        name: the module's full name, or a description of the function.
        run: the module or the function, from one tensor to one tensor; it never changes what it is given,
            even where the network works in place.
        module: the module, if it is one.
        kind: what it does to units.
        note: for SIDE, why it cannot stand between layers.
    """

    name: str
    run: Function
    module: nn.Module | None
    kind: Kind
    note: str = ""


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
            if is_written(node):
                args = (args[0].clone(), *args[1:])
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found: Tensor = values[self.nodes[-1]]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Applied:
        return self  # it holds nothing of the network's


@dataclass(frozen=True)
class Reshaped:
    """`x.view(x.size(0), ...)` in any of its spellings."""

    sizes: tuple[int, ...]

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return x.reshape(x.shape[0], *self.sizes)


def stage_of(
    nodes: Sequence[fx.Node], before: fx.Node, name: str | None, module: nn.Module | None
) -> Stage | str:
    """One operation, or why a chain cannot hold it.

    Args:
        nodes: its operators, in order.
        before: what they take.
        name: of the module whose call they are; None where they are called as functions.
        module: that module.
    """
    if module is not None and name is not None:
        run: Function = Applied(tuple(nodes), before) if getattr(module, "inplace", False) else module
        if isinstance(module, LAYERS + NORMS):
            return Stage(name, run, module, Kind.LAYER if isinstance(module, LAYERS) else Kind.NORM)
        found = _kind(nodes, module)
        return found if isinstance(found, str) else Stage(name, run, module, *found)
    found = _kind(nodes)
    if isinstance(found, str):
        return found
    kind, note = found
    run = Applied(tuple(nodes), before)
    if kind is Kind.FLATTEN or note == _SHAPED:
        run = Reshaped(_asked(nodes[0])[1:])
    return Stage(f"{op_name(nodes[0])}()", run, None, kind, note)


def _kind(nodes: Sequence[fx.Node], module: nn.Module | None = None) -> tuple[Kind, str] | str:
    """What operators do to units, with a note as in `Stage`, or why a chain cannot hold them."""
    record = operator_of(nodes[0])
    if isinstance(module, (nn.PReLU, nn.modules.dropout._DropoutNd)) or all(map(sees_entries, nodes)):
        return Kind.POINTWISE, ""
    if record.labels is spatial.pooled and "pool" in record.name and _is_one(nodes):
        return Kind.POOL, ""
    if isinstance(module, nn.LocalResponseNorm) or record.labels in (
        reductions.layer_norm,
        reductions.group_norm,
    ):
        return Kind.SIDE, _STATISTICS
    if record.labels is reductions.softmax and len(nodes) == 1:
        return Kind.SIDE, "mixes units"
    if record.labels is moves.view and len(nodes) == 1:
        return _shaping(nodes[0])
    if record.drops and len(nodes) == 1:
        return "drops units in evaluation, too: give it `training=self.training`"
    return _UNKNOWN


def _shaping(node: fx.Node) -> tuple[Kind, str] | str:
    """Flattening, or another shape, which only fits the network's ends."""
    before, after = (each.meta["val"].shape for each in (node.args[0], node))  # type: ignore[union-attr]
    asked = _asked(node)
    if op_name(node) == "flatten" and asked != (-1, -1):
        return "does not flatten all but the first dimension"
    if asked[0] not in (-1, before[0]) or after[0] != before[0]:
        return "does not keep the batch as its first dimension"
    if len(asked) == 2 and op_name(node) not in ("squeeze", "unsqueeze"):
        return Kind.FLATTEN, ""
    return Kind.SIDE, _SHAPED


def oddity(module: nn.Module) -> str:
    """Why a chain cannot hold a module, whatever it does to units; empty if it can."""
    if is_parametrized(module):
        return "it is parametrized, so its weight is no parameter of its own"
    if getattr(module, "return_indices", False):
        return "it returns indices, too"
    if isinstance(module, nn.PReLU) and module.num_parameters > 1:
        return "its slopes differ between units, which is not followed: use one slope"
    if isinstance(module, LAYERS + NORMS):
        kinds = [kind for kind in LAYERS + NORMS if isinstance(module, kind)]
        if not any(type(module).forward is kind.forward for kind in kinds):
            return "its class computes something of its own in forward"
        for short in ("weight", "bias"):
            if short not in module._parameters:
                return f"its {short} is no plain parameter, as after weight_norm or torch.nn.utils.prune"
    return ""


def sees_entries(node: fx.Node) -> bool:
    """Whether an operator looks at each number alone."""
    record = operator_of(node)
    if record.drops:
        return not argument(node, "train")
    return record.labels is pointwise.same or (record.labels is None and is_pointwise(record))


def _is_one(nodes: Sequence[fx.Node]) -> bool:
    """Whether this is one operator, or the first of what one gives: the maximum without where it was."""
    return len(nodes) == 1 or (len(nodes) == 2 and nodes[1].target is operator.getitem)


def _asked(node: fx.Node) -> tuple[int, ...]:
    """The shape that an operator was asked for, a flatten of all but the first dimension as (-1, -1)."""
    name, before, after = op_name(node), node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if name == "flatten":
        first, last = (argument(node, name) for name in ("start_dim", "end_dim"))
        whole = first == 1 and last in (-1, before.dim() - 1)
        return (-1, -1) if whole else tuple(after.shape)
    if name in ("view", "reshape", "_unsafe_view"):
        return tuple(int(size) for size in node.args[1])  # type: ignore[union-attr, arg-type]
    return tuple(after.shape)


@dataclass(frozen=True)
class UnitGroup:
    """The units that one layer hands to the next.

    Attributes:
        name: the producing layer's full name; `input` for the network's input features.
        units: how many there are: neurons of a linear layer, filters of a convolution.
        consumer: the full name of the layer that reads them.
        repeat: neighbouring inputs of the consumer per unit: height x width after a flatten, else 1.
    """

    name: str
    units: int
    consumer: str
    repeat: int


@dataclass(frozen=True)
class Chain:
    """A network whose every operation has one input and one output.

    Attributes:
        stages: the operations in order.
        groups: the units between consecutive linear or convolution layers, front to back; the network's
            outputs are no group, and its input features (`INPUT`) are one only where they were asked for.
        refused: what would be a group but for a reason, by name, with the reason: units that a grouped
            convolution makes or reads.
    """

    stages: tuple[Stage, ...]
    groups: tuple[UnitGroup, ...]
    refused: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def modules(self) -> list[nn.Module]:
        """The modules among the operations."""
        return [stage.module for stage in self.stages if stage.module is not None]

    def group(self, name: str) -> UnitGroup:
        """The group of that name.

        Raises:
            ModelError: if there would be one but for a reason, which is given.
            InputError: if there is none; the message names those that exist.
        """
        for group in self.groups:
            if group.name == name:
                return group
        if name in self.refused:
            raise ModelError(f"the units of {name!r} cannot be removed: {self.refused[name]}")
        known = [group.name for group in self.groups]
        raise InputError(f"there is no group of units {name!r}{instead(name, known, 'groups')}")


def linked(stages: Sequence[Stage], plan: GroupPlan, *, inputs: bool) -> Chain:
    """The chain that operations in a row make, with the units that the plan has between their layers.

    Raises:
        ModelError: naming the layer whose units the next one does not read one by one; for the model's input
            only if it was asked for.
    """
    groups: list[UnitGroup] = []
    refused: dict[str, str] = {}
    producer: Stage | None = None
    side = ""  # what mixes units on the way; it counts once a layer follows
    for stage in stages:
        if stage.kind is Kind.SIDE:
            side = side or f"its output feeds {stage.name!r}, which {stage.note}"
        if stage.kind is not Kind.LAYER:
            continue
        if producer is not None or inputs:
            found = side or _units_between(producer, stage, plan)
            grouped = _grouped(producer, stage)
            if isinstance(found, str) and not grouped:
                what = "the model's input" if producer is None else f"layer {producer.name!r}"
                raise ModelError(f"{what} is no link of a chain: {found}")
            if grouped:
                refused[INPUT if producer is None else producer.name] = grouped
            elif isinstance(found, UnitGroup):
                groups.append(found)
        producer, side = stage, ""
    if producer is None:
        raise ModelError("the model has no linear or convolution layer")
    return Chain(tuple(stages), tuple(groups), MappingProxyType(refused))


def _grouped(producer: Stage | None, consumer: Stage) -> str:
    """Why the units go together as a convolution in groups has them; empty if they do not."""
    made, read = (getattr(each and each.module, "groups", 1) for each in (producer, consumer))
    if made > 1:
        return f"it is a convolution in {made} groups"
    return f"{consumer.name!r} reads them in {read} groups" if read > 1 else ""


def _units_between(producer: Stage | None, consumer: Stage, plan: GroupPlan) -> UnitGroup | str:
    """The units that a layer, or the model's input, hands to the next one, or why they cannot be told."""
    assert isinstance(consumer.module, LAYERS)
    name, entries = INPUT, consumer.module.weight.shape[1]
    made, weight = entries, ""
    if producer is not None:
        assert isinstance(producer.module, LAYERS)
        name, made, weight = producer.name, len(producer.module.weight), f"{producer.name}.weight"
    if made == 1:  # it is coupled to nothing, since it cannot go
        return UnitGroup(name, 1, consumer.name, entries)
    frozen = None
    for group in plan.groups:
        if group.name == name if producer is None else any(each.tensor == weight for each in group.producers):
            repeat = entries // group.units
            alone = tuple(tuple(range(unit * repeat, (unit + 1) * repeat)) for unit in range(group.units))
            read = Member(f"{consumer.name}.weight", 1, alone, "consumer")
            if read in group.members and not group.normalised:
                return UnitGroup(name, group.units, consumer.name, repeat)
            frozen = frozen or group.frozen
    return f"{consumer.name!r} does not read its units one by one" + (f", and it {frozen}" if frozen else "")


# ---- layers that read units ----

# these overwrite their input: they are only run on buffers that belong to this package
_IN_PLACE: dict[object, Function] = {
    kind: function
    for kinds, function in (
        ((nn.Sigmoid, "sigmoid"), torch.sigmoid_),
        ((nn.Tanh, "tanh"), torch.tanh_),
        ((nn.ReLU, "relu"), torch.relu_),
    )
    for kind in kinds
}


def in_place(stage: Stage) -> Function:
    """A function that does what a stage does, and may overwrite its input."""
    kind = type(stage.module) if stage.module is not None else getattr(stage.run, "target", "")
    return _IN_PLACE.get(kind, stage.run)


def unit_dim(consumer: Stage, x: Tensor) -> int:
    """The dimension of a consumer's input that units lie along: the last one for a linear layer, else 1."""
    return x.dim() - 1 if isinstance(consumer.module, nn.Linear) else 1


def with_gains(x: Tensor, group: UnitGroup, dim: int, gains: Tensor) -> Tensor:
    """A consumer's input, each unit multiplied by its gain; gains: (units,)."""
    gains = gains.to(x.dtype).repeat_interleave(group.repeat)
    return x * gains.view(-1, *[1] * (x.dim() - dim - 1))


def weight_of(consumer: Stage) -> Tensor:
    """A layer's weights (outputs, inputs, ...)."""
    return cast(Tensor, getattr(consumer.module, "weight")).detach()  # noqa: B009


def weights_by_unit(consumer: Stage, group: UnitGroup) -> Tensor:
    """The consumer's weights as (units, outputs, repeat, ...), the kernel's sizes at the end."""
    return torch.unflatten(weight_of(consumer), 1, (group.units, group.repeat)).transpose(0, 1)


def bias_of(consumer: Stage) -> Tensor | None:
    """A layer's biases (outputs,), if it has any."""
    bias: Tensor | None = getattr(consumer.module, "bias")  # noqa: B009
    return None if bias is None else bias.detach()


def linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """A linear layer on (..., features, n)."""
    if bias is not None and x.dim() == 2:
        return torch.addmm(bias.unsqueeze(1), weight, x)
    y = torch.matmul(weight, x)
    return y if bias is None else y.add_(bias.unsqueeze(1))
