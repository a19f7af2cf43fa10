"""Running networks in double precision, without dropout, and with statistics over what is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from prunekit.graph.correct import groups_left, op_name
from prunekit.graph.traced import Flags, Keeping
from prunekit.graph.values import position

_NARROW = (torch.float32, torch.float16, torch.bfloat16)
_DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "native_dropout", "feature_alpha_dropout"}
_MEANS = {"mean", "var", "std", "var_mean", "std_mean"}


def doubled(value: Any) -> Any:
    """The value, or float64 for a narrower type of real numbers."""
    return torch.float64 if isinstance(value, torch.dtype) and value in _NARROW else value


class Exactly(TorchFunctionMode):
    """Functions of torch called in it do not drop anything and compute in double precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call it with other types, or leave it out."""
        name = getattr(func, "__name__", "")
        kwargs = {key: doubled(value) for key, value in (kwargs or {}).items()}
        if "dropout" in name and args and isinstance(args[0], Tensor):
            return args[0]
        if "dropout" in name and isinstance(kwargs.get("input"), Tensor):
            return kwargs["input"]
        if name == "scaled_dot_product_attention":
            args = (*args[:4], *((0.0,) if len(args) > 4 else ()), *args[5:])
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        if name in ("float", "half", "bfloat16") and args and isinstance(args[0], Tensor):
            return args[0].double()
        return func(*map(doubled, args), **kwargs)


@contextmanager
def exact() -> Iterator[None]:
    """Double precision, no dropout, and the same random numbers each time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.random.fork_rng(devices=[]), Exactly():
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


class Interpreter(fx.Interpreter):
    """Runs an exported graph in double precision and without dropout.

    Args:
        module: the graph.
        keeping: statistics run over what stays of each node by this; None for all.
        number: of the graph.
        prefix: of the names of its nodes.
    """

    def __init__(
        self, module: fx.GraphModule, keeping: Keeping | None = None, number: int = 0, prefix: str = ""
    ) -> None:
        super().__init__(module)
        self._keeping, self._number, self._prefix = keeping, number, prefix
        self._node: fx.Node | None = None

    def run_node(self, node: fx.Node) -> Any:
        """Remember which node it is."""
        self._node = node
        return super().run_node(node)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call what the node calls, with other types."""
        assert self._node is not None
        node, name = self._node, op_name(self._node)
        if name.startswith("_assert"):
            return None
        if name in _DROPOUTS:
            return args[0]
        inner = next((place for place, arg in enumerate(args) if isinstance(arg, fx.GraphModule)), None)
        if inner is not None:
            below = Interpreter(args[inner], self._keeping, self._number, f"{self._prefix}{node}/")
            grad = args[0] if isinstance(args[0], bool) else torch.is_grad_enabled()
            with torch.set_grad_enabled(grad):
                return below.run(*args[inner + 1 :])
        args = tuple(map(doubled, args))
        kwargs = {key: doubled(value) for key, value in kwargs.items()}
        if name in ("float", "half", "bfloat16"):
            return args[0].double()
        if name == "scaled_dot_product_attention" and len(args) > 4:
            args = (*args[:4], 0.0, *args[5:])
        if self._keeping is not None:
            if name in ("layer_norm", "rms_norm"):
                return self._layer_norm(target, node, args, kwargs)
            if name == "group_norm":
                return self._group_norm(target, node, args, kwargs)
            if name in _MEANS:
                return self._mean(target, node, args, kwargs)
        return super().call_function(target, args, kwargs)

    def _stays(self, node: Any, axis: int) -> Flags | None:
        assert self._keeping is not None
        found = self._keeping(self._number, f"{self._prefix}{node.name}") if isinstance(node, fx.Node) else ()
        return found[0][axis] if found else None

    def _layer_norm(self, call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any) -> Any:
        x, shape, rest = args[0], list(args[1]), list(args[2:])
        for offset in range(1, len(shape) + 1):
            flags = self._stays(node, x.dim() - offset)
            if flags is not None:
                x = taken(x, -offset, flags)
                shape[-offset] = x.shape[-offset]
                rest = [taken(r, -offset, flags) if isinstance(r, Tensor) else r for r in rest]
        found = call(x, shape, *rest, **kwargs)
        for offset in range(1, len(shape) + 1):
            flags = self._stays(node, x.dim() - offset)
            if flags is not None:
                found = spread(found, -offset, flags)
        return found

    def _group_norm(self, call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any) -> Any:
        flags = self._stays(node, 1)
        if flags is None:
            return call(*args, **kwargs)
        rest = [taken(r, 0, flags) if isinstance(r, Tensor) else r for r in args[2:]]
        found = call(taken(args[0], 1, flags), groups_left(flags, args[1]), *rest, **kwargs)
        return spread(found, 1, flags)

    def _mean(self, call: Callable[..., Any], node: fx.Node, args: Any, kwargs: Any) -> Any:
        x = args[0]
        dims = kwargs.get("dim", next((arg for arg in args[1:] if isinstance(arg, (list, int))), None))
        axes = range(x.dim()) if dims is None else np.atleast_1d(dims).tolist()
        for axis in axes:
            flags = self._stays(node.args[0], position(axis, x.dim()))
            if flags is not None:
                x = taken(x, axis, flags)
        return call(x, *args[1:], **kwargs)


def taken(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """The entries of one axis that stay."""
    return tensor.index_select(axis, torch.from_numpy(np.flatnonzero(flags)).to(tensor.device))


def spread(tensor: Tensor, axis: int, flags: Flags) -> Tensor:
    """Back at their places, with zeros between."""
    axis = position(axis, tensor.dim())
    shape = (*tensor.shape[:axis], flags.size, *tensor.shape[axis + 1 :])
    index = torch.from_numpy(np.flatnonzero(flags)).to(tensor.device)
    return tensor.new_zeros(shape).index_copy(axis, index, tensor)
