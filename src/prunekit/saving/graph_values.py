"""Contents of a saved graph: operators by name, arguments as JSON, and the nesting of inputs and outputs."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunekit.errors import ModelError
from prunekit.graph.free_sizes import same_answer
from prunekit.graph.ops import OPERATORS

OVERLOADS = frozenset(
    f"{record.name}.{overload}" for record in OPERATORS.values() for overload in record.saved
)
"""The names of the overloads, as `packet.overload`."""


def batch_norm_training(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm over the batch's own statistics: (output, new running mean, new running variance).

    `aten.batch_norm` writes the running statistics into its arguments; here they are results.

    Args:
        x: (N, C, ...) inputs.
        weight: (C,) scale.
        bias: (C,) shift.
        mean: (C,) running mean.
        variance: (C,) running variance.
        momentum: the share of the batch's statistics in the new running ones.
        eps: added to the variance.
    """
    new_mean, new_variance = mean.detach().clone(), variance.detach().clone()
    out = torch.ops.aten.batch_norm.default(
        x, weight, bias, new_mean, new_variance, True, momentum, eps, False
    )
    return out, new_mean, new_variance


def bernoulli_like(x: Tensor, p: float = 0.5) -> Tensor:
    """Zeros and ones of the shape and dtype of `x`, ones with probability `p` in [0, 1].

    `aten.bernoulli.p` draws the same, but cannot be run without data.
    """
    return torch.zeros_like(x).bernoulli_(p)


_OWN: dict[str, Callable[..., Any]] = {
    "getitem": operator.getitem,
    "same_answer": same_answer,
    "bernoulli_like": bernoulli_like,
    "batch_norm_training": batch_norm_training,
}
SIZES: dict[str, Callable[..., Any]] = {
    "sym_size.int": torch.ops.aten.sym_size.int,
    "size_add": operator.add,
    "size_sub": operator.sub,
    "size_mul": operator.mul,
    "size_floordiv": operator.floordiv,
    "size_mod": operator.mod,
}
"""The size of one axis of a tensor, and arithmetic with whole numbers: what sizes are computed with."""

_NAMES = {function: name for name, function in {**_OWN, **SIZES}.items()}


def operator_name(target: Any) -> str | None:
    """The name under which an operator is saved; None for one that must not be."""
    if isinstance(target, torch._ops.OpOverload) and target not in _NAMES:
        name = f"{target.overloadpacket.__name__}.{target._overloadname}"
        return name if target.namespace == "aten" and name in OVERLOADS else None
    return _NAMES.get(target) if callable(target) else None


def named_operator(name: Any) -> Callable[..., Any]:
    """The operator of that name.

    Raises:
        ValueError: for one that is not among those allowed, or that this PyTorch does not have.
    """
    if isinstance(name, str) and (name in _OWN or name in SIZES):
        return _OWN.get(name) or SIZES[name]
    if not isinstance(name, str) or name not in OVERLOADS:
        raise ValueError(f"{str(name)[:60]!r} is no operator that a saved graph may hold")
    packet, _, overload = name.partition(".")
    found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
    if not isinstance(found, torch._ops.OpOverload):
        raise ValueError(f"this PyTorch has no operator {name!r}")
    return found


def argument_types(target: Callable[..., Any]) -> dict[str, str]:
    """The names of the arguments that an operator takes, with their types in its schema."""
    schema = getattr(target, "_schema", None)
    return {} if schema is None else {each.name: str(each.real_type) for each in schema.arguments}


DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip
"""PyTorch computes with all of them everywhere, which it does not with others."""


_KINDS: dict[str, tuple[type, frozenset[str]]] = {
    "dtype": (torch.dtype, frozenset(str(dtype).removeprefix("torch.") for dtype in DTYPES)),
    "layout": (torch.layout, frozenset({"strided"})),
    "memory_format": (
        torch.memory_format,
        frozenset({"contiguous_format", "preserve_format", "channels_last", "channels_last_3d"}),
    ),
}
"""What is written by its name in torch: its class, and the names that are allowed."""


def value_to_json(value: Any, places: Mapping[fx.Node, int]) -> Any:
    """A value with the places of nodes; what JSON has not is a mapping of one entry.

    Raises:
        ModelError: for a value of another kind.
    """
    if isinstance(value, fx.Node):
        return {"node": places[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [value_to_json(item, places) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [value_to_json(item, places) for item in value]}
    if isinstance(value, slice):
        parts = (value.start, value.stop, value.step)
        return {"slice": [value_to_json(part, places) for part in parts]}
    if isinstance(value, torch.device):
        return {"device": value.type}
    for name, (kind, allowed) in _KINDS.items():
        if isinstance(value, kind) and str(value).removeprefix("torch.") in allowed:
            return {name: str(value).removeprefix("torch.")}
    raise ModelError(f"the network cannot be saved as a graph: it holds a {type(value).__name__}")


def value_from_json(saved: Any, nodes: Sequence[fx.Node]) -> Any:
    """The inverse. What was on any device is on the CPU, where weights are loaded to.

    Raises:
        ValueError: for what is no value.
    """
    if saved is None or isinstance(saved, bool | int | float | str):
        return saved
    if isinstance(saved, list):
        return [value_from_json(item, nodes) for item in saved]
    if isinstance(saved, dict) and len(saved) == 1:
        ((kind, inside),) = saved.items()
        if kind == "node" and type(inside) is int and 0 <= inside < len(nodes):
            return nodes[inside]
        if kind == "tuple" and isinstance(inside, list):
            return tuple(value_from_json(item, nodes) for item in inside)
        if kind == "slice" and isinstance(inside, list) and len(inside) == 3:
            return slice(*(value_from_json(item, nodes) for item in inside))
        if kind == "float" and inside in ("inf", "-inf", "nan"):
            return float(inside)
        if kind == "device":
            return torch.device("cpu")
        if kind in _KINDS and inside in _KINDS[kind][1]:
            return getattr(torch, inside)
    raise ValueError(f"{str(saved)[:60]!r} is no value of a graph")


_LEAF = "*"


class Outputs(dict[str, Any]):
    """Named outputs: by name as in a mapping or as an attribute, or by number.

    It stands for whatever class a network's outputs are of, since a saved graph names no classes.
    """

    def __getitem__(self, key: str | int) -> Any:
        return list(self.values())[key] if isinstance(key, int) else super().__getitem__(key)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


def _restored(values: Any, names: Any) -> Outputs:
    return Outputs(zip(names, values, strict=True))


pytree.register_pytree_node(
    Outputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    _restored,
    serialized_type_name="prunekit.Outputs",
)


def layout_to_json(spec: pytree.TreeSpec) -> Any:
    """Tuples, lists and mappings with their names; other classes become `Outputs`.

    Raises:
        ModelError: for a class whose parts have no names.
    """
    if spec.is_leaf():
        return _LEAF
    parts = [layout_to_json(child) for child in spec.children()]
    if spec.type in (tuple, list):
        return {spec.type.__name__: parts}
    names = _names(spec, len(parts))
    if spec.type is dict:
        return {"dict": dict(zip(names, parts, strict=True))}
    return {"named": dict(zip(names, parts, strict=True))}


def layout_from_json(saved: Any) -> pytree.TreeSpec:
    """The inverse, up to classes.

    Raises:
        ValueError: where it is none.
    """
    return pytree.tree_flatten(_example(saved))[1]


def _names(spec: pytree.TreeSpec, count: int) -> Sequence[str]:
    fields = getattr(spec.type, "_fields", None)  # of a named tuple
    names = fields if fields is not None else spec.context
    if isinstance(names, tuple | list) and len(names) == count and all(isinstance(n, str) for n in names):
        return names
    kind = spec.type.__name__ if isinstance(spec.type, type) else str(spec.type)
    raise ModelError(f"a network that takes or returns a {kind} cannot be saved as a graph")


def _example(saved: Any) -> Any:
    if saved == _LEAF:
        return 0
    if isinstance(saved, dict) and len(saved) == 1:
        ((kind, parts),) = saved.items()
        if kind in ("tuple", "list") and isinstance(parts, list):
            examples = [_example(part) for part in parts]
            return tuple(examples) if kind == "tuple" else examples
        if kind in ("dict", "named") and isinstance(parts, dict):
            found = {name: _example(part) for name, part in parts.items()}
            return found if kind == "dict" else Outputs(found)
    raise ValueError(f"{str(saved)[:60]!r} says nothing of arguments or outputs")
