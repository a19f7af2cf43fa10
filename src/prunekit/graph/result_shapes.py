"""The shapes of what operators give for tensors without data.

PyTorch works them out in its own Python code, which takes up to milliseconds and first loads its compiler and
its symbols, for a second. Here the shape and the order in memory follow from rules of few lines, and the type
from the operator itself on single numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.graph.layouts import broadcast, empty, entry_by_entry, in_order, like, suggested

Rule = Callable[..., Tensor | None]


def shapes(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operator gives for tensors on the meta device, without anything written to them.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: likewise.
    """
    if func._schema.is_mutable:
        return args[0]
    found = _ruled(func, args, kwargs)
    if found is not None:
        return found
    if "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    if _is_composed(func):
        with _Within():  # type: ignore[no-untyped-call]
            found = func.decompose(*args, **kwargs)
        if found is not NotImplemented:
            return found
    found = func(*args, **kwargs)
    return found.to("meta") if isinstance(found, Tensor) else found  # of plain numbers it is on the CPU


class _Within(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Lets the operators that another one is composed of give what they give here."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """What an operator gives."""
        return shapes(func, args, kwargs or {})


@cache
def _is_composed(func: torch._ops.OpOverload) -> bool:
    composed = torch._C.DispatchKey.CompositeImplicitAutograd
    return func.has_kernel_for_dispatch_key(composed) and not func.is_view


def _ruled(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """What comes out by a rule, where one holds; where something does not fit PyTorch is to say what."""
    name = func.overloadpacket.__name__
    if name in _RULES:
        try:
            return None if kwargs else _RULES[name](*args)
        except ValueError:  # shapes that do not go together
            return None
    if name in _ALIKE:
        return _alike(func, args, kwargs)
    if name in _COUNTING:
        made = func(*args, **{**kwargs, "device": "cpu"})
        return torch.empty(made.shape, dtype=made.dtype, device="meta")
    if torch.Tag.pointwise in func.tags and name not in _OTHERWISE:
        return _entry_by_entry(func, args, kwargs)
    if torch.Tag.reduction in func.tags:
        return _reduced(func, args, kwargs)
    return None


# ---- the types of results, and results like what is read --------------------------------------------------

_COUNTING = frozenset({"arange", "linspace", "eye"})
_OTHERWISE = frozenset({"_to_copy", "to", "clone", "copy", "fill"})
_IN_ORDER = frozenset({"cumsum", "triu", "tril", "masked_fill", "softmax", "log_softmax", "_safe_softmax"})
_ALIKE = _IN_ORDER | {"zeros_like", "ones_like", "full_like", "rand_like", "randn_like"}


@cache
def _one(dtype: torch.dtype, rank: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((1,) * rank, dtype=dtype)


def _typed(
    func: torch._ops.OpOverload,
    args: Any,
    kwargs: dict[str, Any],
    shape: Sequence[int],
    strides: Sequence[int],
) -> Tensor | None:
    """A tensor of the type that an operator gives for single numbers of the same types."""
    kwargs = {**kwargs, "device": "cpu"} if "device" in kwargs else kwargs
    try:
        ones = pytree.tree_map_only(Tensor, lambda each: _one(each.dtype, each.dim()), (args, kwargs))
        found = func(*ones[0], **ones[1])
    except (RuntimeError, IndexError, ValueError, TypeError):
        return None
    if not isinstance(found, Tensor):
        return None
    return torch.empty_strided(tuple(shape), tuple(strides), dtype=found.dtype, device="meta")


def _entry_by_entry(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    given = [each for each in chain(args, kwargs.values()) if isinstance(each, Tensor)]
    if func.overloadpacket.__name__ == "rsub":  # computes b - a
        given.reverse()
    try:
        return _typed(func, args, kwargs, *entry_by_entry(given)) if given else None
    except ValueError:
        return None


def _alike(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    given = [each for each in args if isinstance(each, Tensor)]
    shape, strides = entry_by_entry(given)
    if func.overloadpacket.__name__ in _IN_ORDER:
        strides = in_order(shape, range(len(shape)))
    elif kwargs.get("memory_format") is not None or kwargs.get("layout") is not None:
        return None
    return _typed(func, args, kwargs, shape, strides)


def _reduced(func: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    """A sum, a mean, a maximum... over some axes, or over all of them."""
    names = [each.name for each in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    shape, dims = args[0].shape, given.get("dim")
    if dims == [] and func.overloadpacket.__name__ in ("any", "all"):
        return None
    dims = [dims] if isinstance(dims, int) else dims or range(len(shape))
    dims = {dim % len(shape) for dim in dims} if len(shape) else set()
    kept = [1 if axis in dims else size for axis, size in enumerate(shape)]
    if not given.get("keepdim", False):
        kept = [size for axis, size in enumerate(kept) if axis not in dims]
    return _typed(func, args, kwargs, kept, in_order(kept, range(len(kept))))


# ---- rules of single operators: `(arguments)`, None where they do not hold --------------------------------


def _same_type(*tensors: Tensor | None) -> bool:
    types = {each.dtype for each in tensors if each is not None}
    return len(types) == 1 and next(iter(types)).is_floating_point


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    fits = x.dim() and weight.dim() == 2 and x.shape[-1] == weight.shape[-1]
    return x.new_empty((*x.shape[:-1], len(weight))) if fits and _same_type(x, weight, bias) else None


def _product(x: Tensor, y: Tensor) -> Tensor | None:
    """Of matrices, or of many of them."""
    if not _same_type(x, y) or min(x.dim(), y.dim()) < 2 or x.shape[-1] != y.shape[-2]:
        return None
    if y.dim() > 2 == x.dim():  # computed the other way round
        return None
    shape = (*x.shape[:-1], y.shape[-1])
    if y.dim() > 2 and x.shape[:-2] != y.shape[:-2]:
        shape = (*broadcast(x.shape[:-2], y.shape[:-2]), *shape[-2:])
    return x.new_empty(shape)


def _product_and_sum(added: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    found = _product(x, y) if _same_type(added, x) else None
    if found is None or broadcast(added.shape, found.shape) != found.shape:
        return None
    return found


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    drops: float = 0.0,
    causal: bool = False,
) -> Tensor | None:
    """In one step, as the queries lie in memory; where PyTorch takes several, in the order of the axes."""
    tensors = query, key, value
    if not _same_type(*tensors) or len({(each.dim(), *each.shape[:-2]) for each in tensors}) != 1:
        return None
    if key.shape[-2] != value.shape[-2] or query.shape[-1] != key.shape[-1]:
        return None
    if query.dim() == 4 and not drops and query.shape[-1] == value.shape[-1]:
        return like(query)
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


def _dropped(x: Tensor, share: float, train: bool) -> Tensor:
    return like(x) if train else empty(x, x.shape, x.stride())


def _norm_by_channel(x: Tensor, *_: Any) -> Tensor | None:
    return suggested(x, x.shape) if x.is_floating_point() else None


def _norm_by_example(x: Tensor, *_: Any) -> Tensor | None:
    return x.new_empty(x.shape) if x.is_floating_point() else None


def _embedded(weight: Tensor, indices: Tensor, *_: Any) -> Tensor | None:
    return weight.new_empty((*indices.shape, weight.shape[1])) if weight.dim() == 2 else None


def _picked(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor | None:
    """By numbers, along axes side by side."""
    by = [axis for axis, index in enumerate(indices) if index is not None]
    given = [index for index in indices if index is not None]
    if not x.is_contiguous() or by != list(range(by[0], by[0] + len(by))):
        return None
    if any(index.dtype != torch.int64 or not index.is_contiguous() for index in given):
        return None
    picked = broadcast(*(index.shape for index in given))
    return x.new_empty((*x.shape[: by[0]], *picked, *x.shape[by[-1] + 1 :]))


def _gathered(x: Tensor, dim: int, index: Tensor, *_: Any) -> Tensor | None:
    return x.new_empty(index.shape) if x.dim() == index.dim() else None


def _in_a_row(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    shape, rank = first.shape, first.dim()
    if any(each.dtype != first.dtype or (rank > 3 and not each.is_contiguous()) for each in tensors):
        return None
    if not -rank <= dim < rank or any(each.dim() != rank for each in tensors):
        return None
    dim %= rank
    others = {(each.shape[:dim], each.shape[dim + 1 :]) for each in tensors}
    whole = sum(each.shape[dim] for each in tensors)
    return first.new_empty((*shape[:dim], whole, *shape[dim + 1 :])) if len(others) == 1 else None


def _stacked(tensors: Sequence[Tensor], dim: int = 0) -> Tensor | None:
    first = tensors[0]
    alike = all(each.shape == first.shape and each.dtype == first.dtype for each in tensors)
    if not alike or not all(each.is_contiguous() for each in tensors):
        return None
    shape = list(first.shape)
    shape.insert(dim if dim >= 0 else dim + first.dim() + 1, len(tensors))
    return first.new_empty(shape)


def _averaged(sides: int, x: Tensor, size: Sequence[int]) -> Tensor:
    return x.new_empty((*x.shape[:-sides], *size))


# ---- windows that move over images or signals, and images in other sizes ----


def _convolution(
    sides: int,
    x: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    gap: Any = 1,
    groups: int = 1,
) -> Tensor | None:
    """What a convolution gives; None where PyTorch is to say what does not fit.

    Args:
        sides: of the window.
        x: examples.
        weight: of the layer.
        bias: likewise.
        stride: as PyTorch takes it.
        padding: likewise.
        gap: between entries of the window (dilation).
        groups: of channels.
    """
    if x.dim() != sides + 2 or x.shape[1] != weight.shape[1] * groups or not _fits(x, weight):
        return None
    if sides == 3 and not x.is_contiguous():  # the order in memory depends on the type
        return None
    places = _places(x, weight.shape[2:], stride, padding, gap)
    return None if places is None else suggested(x, (len(x), len(weight), *places))


def _max_pool(
    sides: int, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, gap: Any = 1, ceil: bool = False
) -> Tensor | None:
    """What a maximum over windows gives; the arguments are those of `_convolution`."""
    if ceil or len(kernel) != sides or x.dim() != sides + 2 or not (_fits(x) and x.is_contiguous()):
        return None
    places = _places(x, kernel, stride or kernel, padding, gap)
    return None if places is None else x.new_empty((*x.shape[:2], *places))


def _resized(x: Tensor, size: Any, *more: Any) -> Tensor | None:
    """Images in another size: given as such, or as a factor in the last argument."""
    factors = more[-1] if more else None
    if not x.is_contiguous() or (isinstance(factors, Sequence) == isinstance(size, Sequence)):
        return None
    if factors is not None:
        size = [int(side * factor) for side, factor in zip(x.shape[2:], factors, strict=True)]
    return x.new_empty((*x.shape[:2], *size))


def _fits(x: Tensor, weight: Tensor | None = None) -> bool:
    if weight is not None and not (weight.is_contiguous() and weight.dtype == x.dtype):
        return False
    return x.is_floating_point()


def _places(x: Tensor, kernel: Any, stride: Any, padding: Any, gap: Any) -> tuple[int, ...] | None:
    """At how many places a window fits along each of the last axes."""
    sides = len(kernel)
    given = [[each] * sides if isinstance(each, int) else each for each in (stride, padding, gap)]
    if any(isinstance(each, str) or len(each) != sides for each in given):
        return None
    left = [
        size + 2 * pad - gap * (width - 1) - 1
        for size, width, pad, gap in zip(x.shape[-sides:], kernel, *given[1:], strict=True)
    ]
    places = tuple(free // step + 1 for free, step in zip(left, given[0], strict=True))
    return places if min(left) >= 0 else None


_RULES: dict[str, Rule] = {
    "linear": _linear,
    **dict.fromkeys(("mm", "bmm", "matmul"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _product_and_sum),
    "scaled_dot_product_attention": _attention,
    "dropout": _dropped,
    **dict.fromkeys(("batch_norm", "group_norm"), _norm_by_channel),
    **dict.fromkeys(("layer_norm", "instance_norm"), _norm_by_example),
    "embedding": _embedded,
    "index": _picked,
    "gather": _gathered,
    "cat": _in_a_row,
    "stack": _stacked,
    **{f"conv{sides}d": partial(_convolution, sides) for sides in (1, 2, 3)},
    **{f"max_pool{sides}d": partial(_max_pool, sides) for sides in (1, 2, 3)},
    **{f"adaptive_avg_pool{sides}d": partial(_averaged, sides) for sides in (1, 2, 3)},
    **dict.fromkeys(("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d"), _resized),
    **dict.fromkeys(("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d"), _resized),
}
