"""Arithmetic entry by entry, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prunekit.graph.ops.registry import rule
from prunekit.graph.values import Dim, Value
from prunekit.graph.walker import Walker, result_shape

# f(0) = 0, so that what is zero at the entries taken out stays so
_KEEP_ZERO = frozenset(
    [
        "abs",
        "asin",
        "asinh",
        "atan",
        "ceil",
        "celu",
        "deg2rad",
        "elu",
        "erf",
        "expm1",
        "floor",
        "gelu",
        "hardshrink",
        "hardswish",
        "leaky_relu",
        "log1p",
        "mish",
        "nan_to_num",
        "neg",
        "positive",
        "relu",
        "relu6",
        "round",
        "rrelu",
        "selu",
        "sign",
        "silu",
        "sin",
        "sinh",
        "softshrink",
        "softsign",
        "sqrt",
        "square",
        "tanh",
        "tanhshrink",
        "trunc",
    ]
)
# entry by entry, but without PyTorch's tag for it
UNTAGGED = frozenset(["copy", "hardswish", "hardsigmoid", "relu6", "mish", "log_sigmoid", "rrelu", "clip"])
_PRODUCTS = frozenset(["mul", "multiply", "logical_and", "bitwise_and"])


def aligned(walker: Walker, values: Sequence[Value], zero: Callable[[list[bool]], bool]) -> Value:
    """Axes of tensors broadcast together; `zero` says from the operands' zeros whether the result is zero."""
    rank = max((len(value) for value in values), default=0)
    result = []
    for axis in range(-rank, 0):
        dims = [value[axis] if -axis <= len(value) else None for value in values]
        size = max(dim.size for dim in dims if dim is not None)
        wide = [dim for dim in dims if dim is not None and dim.size == size]
        zeros = [dim is not None and dim.size == size and dim.zero for dim in dims]
        origin = wide[0].origin if len(values) == 1 else None
        result.append(Dim(size, walker.join_all(wide), zero(zeros), origin))
    return tuple(result)


def added(walker: Walker, values: Sequence[Value]) -> Value:
    """The sum of tensors: zero where all of them are."""
    return aligned(walker, values, all)


def pointwise(walker: Walker, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Value:
    """Any operator that works entry by entry: the axes of all operands go together."""
    operands = [arg for arg in [*args, *kwargs.values()] if isinstance(arg, tuple) and _is_value(arg)]
    return aligned(walker, operands, _zero(name, args, kwargs, len(operands)))


def _is_value(arg: Any) -> bool:
    return all(isinstance(dim, Dim) for dim in arg)


def _zero(name: str, args: Sequence[Any], kwargs: dict[str, Any], count: int) -> Callable[[list[bool]], bool]:
    numbers = [arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]
    if name in _PRODUCTS:
        return any
    if name in {"div", "divide", "true_divide", "floor_divide"}:
        return lambda zeros: zeros[0] and _is_value_first(args)
    if name in {"add", "sub", "subtract", "copy"}:
        scalar = any(number != 0 for number in numbers[:1]) if count == 1 else False
        return lambda zeros: all(zeros) and not scalar
    if name in {"maximum", "minimum", "fmax", "fmin", "lerp", "atan2"}:
        return all
    if name == "where":
        whole = count == 3
        return lambda zeros: whole and all(zeros[1:])
    if name == "masked_fill":
        nothing = numbers[-1:] == [0]
        return lambda zeros: zeros[0] and nothing
    if name == "pow":
        positive = bool(numbers) and numbers[0] > 0 and _is_value_first(args)
        return lambda zeros: positive and zeros[0]
    if name in {"clamp", "clip", "hardtanh", "clamp_min", "clamp_max"}:
        bounds = [arg for arg in [*args[1:], *kwargs.values()] if arg is not None]
        low, high = _bounds(name, args, kwargs)
        fits = all(isinstance(bound, (int, float)) for bound in bounds) and low <= 0 <= high
        return lambda zeros: fits and all(zeros)
    keeps = name in _KEEP_ZERO
    return lambda zeros: keeps and all(zeros)


def _is_value_first(args: Sequence[Any]) -> bool:
    return bool(args) and isinstance(args[0], tuple)


def _bounds(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[float, float]:
    given = list(args[1:3])
    if name == "clamp_max":
        given = [None, *given[:1]]
    default = (-1.0, 1.0) if name == "hardtanh" else (float("-inf"), float("inf"))
    found = []
    for index, (key, other) in enumerate(
        [(("min", "min_val"), default[0]), (("max", "max_val"), default[1])]
    ):
        value = given[index] if index < len(given) else None
        for word in key:
            value = kwargs.get(word, value)
        found.append(value if isinstance(value, (int, float)) else other)
    return float(found[0]), float(found[1])


@rule("dropout", "feature_dropout", "alpha_dropout")
def dropped(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """Entries are zero at random, others are scaled."""
    return x


@rule(
    "to",
    "_to_copy",
    "type_as",
    "float",
    "half",
    "double",
    "contiguous",
    "clone",
    "alias",
    "detach",
    "lift_fresh",
)
def same(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """The tensor itself, in another format or place."""
    return x


@rule("prelu")
def prelu(walker: Walker, x: Value, weight: Value) -> Value:
    """x (N, C, ...), one slope for each channel or for all."""
    if len(weight) == 0 or weight[0].size == 1 or len(x) < 2:
        return tuple(dim._replace(origin=None) for dim in x)
    joined = Dim(x[1].size, walker.join(x[1], weight[0]), x[1].zero)
    return (*x[:1], joined, *x[2:])


@rule("zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "empty_like", "bernoulli")
def like(walker: Walker, x: Value, *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as x has."""
    zero = "zeros" in walker.operator
    return tuple(dim._replace(zero=zero, origin=None) for dim in x)


@rule("new_zeros", "new_ones", "new_full")
def new_like(walker: Walker, x: Value, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as the size says."""
    return made(walker, size)


@rule("zeros", "ones", "full", "empty")
def made(walker: Walker, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike: any of them can be taken out."""
    zero = "zeros" in walker.operator
    return tuple(Dim(count, walker.labels.new(count) if count > 1 else None, zero) for count in size)


@rule("arange", "linspace", "scalar_tensor", "tensor", "eye", "randperm", "rand", "randn", "_tensor_constant")
def numbers(walker: Walker, *_: Any, **__: Any) -> Any:
    """Entries with a meaning of their own, which cannot be taken out."""
    return result_shape(walker.val)
