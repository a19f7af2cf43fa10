"""One operation of a chain: what it does to units, and how it is run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils.parametrize import is_parametrized

from prunekit.graph.ops import moves, norms, op_name, operator_of, pointwise, reductions, spatial
from prunekit.graph.ops.registry import argument
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
        note: for SIDE, why it cannot stand between layers; for FLATTEN, the number written into `forward`.
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
            if getattr(getattr(node.target, "_schema", None), "is_mutable", False):
                args = (args[0].clone(), *args[1:])
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        found: Tensor = values[self.nodes[-1]]
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> Applied:
        return self  # it holds nothing of the network's


@dataclass(frozen=True)
class Copied:
    """A module that works in place, on a copy."""

    module: nn.Module

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.module(x.clone())


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
        run: Function = Copied(module) if getattr(module, "inplace", False) else module
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
    if isinstance(module, nn.LocalResponseNorm) or record.labels in (norms.layer_norm, norms.group_norm):
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
        return Kind.FLATTEN, "" if asked[1] == -1 else str(asked[1])
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
        return not argument(node, 2, "train")
    return record.labels is pointwise.same or (record.labels is None and is_pointwise(record))


def _is_one(nodes: Sequence[fx.Node]) -> bool:
    """Whether this is one operator, or the first of what one gives: the maximum without where it was."""
    return len(nodes) == 1 or (len(nodes) == 2 and nodes[1].target is operator.getitem)


def _asked(node: fx.Node) -> tuple[int, ...]:
    """The shape that an operator was asked for, a flatten of all but the first dimension as (-1, -1)."""
    name, before, after = op_name(node), node.args[0].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    if name == "flatten":
        first, last = (argument(node, place, key) for place, key in ((1, "start_dim"), (2, "end_dim")))
        whole = first == 1 and (-1 if last is None else last) in (-1, before.dim() - 1)
        return (-1, -1) if whole else tuple(after.shape)
    if name in ("view", "reshape", "_unsafe_view"):
        return tuple(int(size) for size in node.args[1])  # type: ignore[union-attr, arg-type]
    return tuple(after.shape)
