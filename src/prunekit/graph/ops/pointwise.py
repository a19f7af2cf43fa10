"""Arithmetic entry by entry, with broadcasting, and tensors made of numbers alone, such as zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from prunekit.graph.labels import Dim, Propagator, Value, result_shape
from prunekit.graph.ops.moves import resize_shape
from prunekit.graph.ops.registry import ModuleSizes, Operator, operators, tensors_among

SPREAD = "is one entry that is spread over others"


def aligned(propagator: Propagator, values: Sequence[Value], zero: Callable[[list[bool]], bool]) -> Value:
    """Axes of tensors broadcast together; `zero` says from the operands' zeros whether the result is zero."""
    rank = max((len(value) for value in values), default=0)
    result = []
    for axis in range(-rank, 0):
        dims = [value[axis] if -axis <= len(value) else None for value in values]
        size = max(dim.size for dim in dims if dim is not None)
        wide = [dim for dim in dims if dim is not None and dim.size == size]
        propagator.freeze([dim for dim in dims if dim is not None and dim.size < size], SPREAD)
        zeros = [dim is not None and dim.size == size and dim.zero for dim in dims]
        origin = wide[0].origin if len(values) == 1 else None
        result.append(Dim(size, propagator.join_all(wide), zero(zeros), origin))
    return tuple(result)


def added(propagator: Propagator, values: Sequence[Value]) -> Value:
    """The sum of tensors: zero where all of them are."""
    return aligned(propagator, values, all)


_DIVISORS = {
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "fmod", "remainder"), 1),
    **dict.fromkeys(("reciprocal", "rsqrt", "log", "log2", "log10"), 0),
}
"""The place of the argument that must not be zero, by operator."""


def pointwise(propagator: Propagator, record: Operator, args: Sequence[Any], kwargs: dict[str, Any]) -> Value:
    """Any operator that works entry by entry: the axes of all operands go together."""
    operands = [arg for arg in [*args, *kwargs.values()] if _is_value(arg)]
    for divisor in args[_DIVISORS.get(record.name, len(args)) :][:1]:
        for dim in divisor if _is_value(divisor) else ():
            propagator.role(dim, "divisor")
    zero = record.zero or _lost
    return aligned(propagator, operands, lambda zeros: zero(zeros, args, kwargs))


def _is_value(arg: Any) -> bool:
    return isinstance(arg, tuple) and all(isinstance(dim, Dim) for dim in arg)


def _numbers(args: Sequence[Any]) -> list[float]:
    return [arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]


def _lost(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Anything may come of zero, as with f(0) = 1."""
    return False


def zero_stays(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """f(0) = 0, or f(0, 0) = 0: what is zero at the entries taken out stays so."""
    return all(zeros)


def zero_of_product(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """One factor is enough."""
    return any(zeros)


def zero_of_quotient(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Zero divided by anything."""
    return zeros[0] and _is_value(args[0])


def zero_of_sum(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Of two tensors, or of one and the number 0."""
    return all(zeros) and (len(zeros) > 1 or _numbers(args)[:1] in ([], [0]))


def zero_of_where(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whichever of two tensors is picked."""
    return len(zeros) == 3 and all(zeros[1:])


def zero_of_masked_fill(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Where it is filled with the number 0."""
    return zeros[0] and _numbers(args)[-1:] == [0]


def zero_of_power(zeros: list[bool], args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Zero to a positive power."""
    return zeros[0] and _is_value(args[0]) and any(number > 0 for number in _numbers(args)[:1])


def zero_of_clamp(
    zeros: list[bool],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    names: Sequence[str] = ("min", "max"),
) -> bool:
    """Where zero lies within the bounds, which the arguments of these names give; what is not given does."""
    given = {**dict(zip(names, args[1:], strict=False)), **kwargs}
    return all(zeros) and all(
        isinstance(bound, (int, float)) and (bound <= 0 if name.startswith("min") else bound >= 0)
        for name, bound in given.items()
        if bound is not None
    )


def check_division(arguments: Mapping[str, Any]) -> None:
    """Refuse to cut quotients of whole numbers: the least of them divided by -1 ends the process."""
    dtypes = [each.dtype for each in tensors_among(list(arguments.values()))]
    if arguments.get("rounding_mode") == "trunc" and not any(each.is_floating_point for each in dtypes):
        raise ValueError("whole numbers may not be divided with rounding_mode = 'trunc'")


def same(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """The tensor itself, in another format or place, or with entries at zero that are drawn at random."""
    return x


def with_mask(propagator: Propagator, x: Value, *_: Any, **__: Any) -> list[Value]:
    """The tensor with entries at zero that are drawn at random, and which these are not."""
    return [x, tuple(Dim(dim.size, dim.labels) for dim in x)]


def prelu(propagator: Propagator, x: Value, weight: Value) -> Value:
    """x (N, C, ...), one slope for each channel or for all."""
    if len(weight) == 0 or weight[0].size == 1 or len(x) < 2:
        return tuple(dim._replace(origin=None) for dim in x)
    joined = Dim(x[1].size, propagator.join(x[1], weight[0]), x[1].zero)
    return (*x[:1], joined, *x[2:])


operators("alpha_dropout", labels=same, drops=True, saved="default")
operators("dropout feature_dropout", labels=same, drops=True, passes_units=True, saved="default")
operators(
    "prelu",
    labels=prelu,
    module_sizes=ModuleSizes((nn.PReLU,), {"weight": ("num_parameters",)}),
    activation=True,
    saved="default",
)
operators("_to_copy alias clone contiguous detach type_as", labels=same, saved="default")
operators("double float half lift_fresh", labels=same)
operators("to", labels=same, saved="device dtype dtype_layout other")
operators(
    """
    __xor__ bitwise_or bitwise_xor copysign eq fmod ge gt le lt ne rsub
    """,
    saved="Scalar Tensor",
)
operators(
    """
    abs asin asinh atan atan2 ceil deg2rad erf expm1 floor fmax fmin hardshrink log1p maximum minimum
    nan_to_num neg positive sign sin sinh softshrink sqrt square trunc
    """,
    zero=zero_stays,
    saved="default",
)
operators(
    """
    acos acosh addcdiv addcmul atanh bitwise_not cos cosh erfc erfinv exp exp2 frac heaviside hypot
    isfinite isinf isnan log log10 log2 logaddexp logaddexp2 logical_not logical_or logical_xor logit
    rad2deg reciprocal rsqrt sgn signbit sinc tan
    """,
    saved="default",
)
operators("__and__ __or__", pointwise=True, saved="Scalar Tensor")
operators("add sub", zero=zero_of_sum, saved="Scalar Tensor")
operators("bitwise_and", zero=zero_of_product, saved="Scalar Tensor")
operators("mul", zero=zero_of_product, factors=(0, 1), saved="Scalar Tensor")
operators("bitwise_left_shift bitwise_right_shift", saved="Tensor Tensor_Scalar")
operators("celu elu gelu leaky_relu relu selu silu tanh", zero=zero_stays, activation=True, saved="default")
operators("clamp clamp_min", zero=zero_of_clamp, saved="Tensor default")
operators("clamp_max", zero=partial(zero_of_clamp, names=("max",)), saved="Tensor default")
operators("clip", pointwise=True, zero=zero_of_clamp, saved="Tensor default")
operators("copy", pointwise=True, zero=zero_of_sum, saved="default")
operators("div", zero=zero_of_quotient, saved="Scalar Scalar_mode Tensor Tensor_mode", check=check_division)
operators("divide", pointwise=True, zero=zero_of_quotient)
operators("feature_alpha_dropout", drops=True, saved="default")
operators("native_dropout", labels=with_mask, saved="default")
operators("float_power", saved="Scalar Tensor_Scalar Tensor_Tensor")
operators("floor_divide", pointwise=True, zero=zero_of_quotient, saved="Scalar default")
operators("hardsigmoid log_sigmoid", pointwise=True, activation=True, saved="default")
operators("hardswish mish relu6 rrelu", pointwise=True, zero=zero_stays, activation=True, saved="default")
operators(
    "hardtanh", zero=partial(zero_of_clamp, names=("min_val", "max_val")), activation=True, saved="default"
)
operators("lerp", zero=zero_stays, saved="Scalar Tensor")
operators("logical_and", zero=zero_of_product, saved="default")
operators("masked_fill", zero=zero_of_masked_fill, saved="Scalar Tensor")
operators("multiply", pointwise=True, zero=zero_of_product, factors=(0, 1))
operators("pow", zero=zero_of_power, saved="Scalar Tensor_Scalar Tensor_Tensor")
operators("remainder", saved="Scalar Scalar_Tensor Tensor")
operators("round", zero=zero_stays, saved="decimals default")
operators("sigmoid softplus threshold", activation=True, saved="default")
operators("softsign", zero=zero_stays, activation=True)
operators("subtract", pointwise=True, zero=zero_of_sum)
operators("tanhshrink", zero=zero_stays)
operators("true_divide", zero=zero_of_quotient, saved="Scalar Tensor")
operators("where", zero=zero_of_where, saved="ScalarOther ScalarSelf self")
operators("xlogy", saved="Scalar_Other Scalar_Self Tensor")


# ---- tensors made of sizes and numbers ---------------------------------------------------------------------


def like(propagator: Propagator, x: Value, *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as x has."""
    zero = "zero" in propagator.operator
    return tuple(dim._replace(zero=zero, origin=None) for dim in x)


def filled(propagator: Propagator, x: Value, value: Any) -> Value:
    """Entries that are all the same number."""
    return tuple(dim._replace(zero=value == 0, origin=None) for dim in x)


def new_like(propagator: Propagator, x: Value, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike, as many as the size says."""
    return made(propagator, size)


def made(propagator: Propagator, size: Sequence[int], *_: Any, **__: Any) -> Value:
    """Entries that are all alike: any of them can be taken out."""
    zero = "zeros" in propagator.operator
    return tuple(Dim(count, propagator.labels.new(count) if count > 1 else None, zero) for count in size)


def numbers(propagator: Propagator, *_: Any, **__: Any) -> Any:
    """Entries with a meaning of their own, which cannot be taken out."""
    return result_shape(propagator.val)


def check_one_hot(arguments: Mapping[str, Any]) -> None:
    """Refuse classes that are counted from the values."""
    if not arguments.get("num_classes", -1) >= 1:
        raise ValueError("the number of classes must be given")


operators("bernoulli full_like ones_like rand_like randn_like zeros_like", labels=like, saved="default")
operators("empty_like", labels=like)
operators("empty", labels=made, resize=resize_shape)
operators("full ones zeros", labels=made, resize=resize_shape, saved="default")
operators("new_empty", labels=new_like, resize=resize_shape)
operators("new_full new_ones new_zeros", labels=new_like, resize=resize_shape, saved="default")
operators("_tensor_constant randperm tensor", labels=numbers)
operators("arange", labels=numbers, saved="default start start_step")
operators("eye", labels=numbers, saved="default m")
operators("linspace scalar_tensor", labels=numbers, saved="default")
operators("rand randn", labels=made, resize=resize_shape)
operators("tril_indices triu_indices", labels=numbers, saved="default")
operators("exponential normal_functional uniform", labels=like, saved="default")
operators("cauchy geometric log_normal normal randint_like random", labels=like)
operators("zero", labels=like, saved="default")
operators("fill", labels=filled, saved="Scalar Tensor")
operators("one_hot", saved="default", check=check_one_hot)
