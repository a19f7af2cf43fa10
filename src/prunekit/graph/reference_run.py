"""Running networks in double precision, without dropout, and with statistics over what is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode

from prunekit.graph.groups import KeepMasks
from prunekit.graph.labels import Flags
from prunekit.graph.ops import op_name, operator_of

_NARROW = (torch.float32, torch.float16, torch.bfloat16)


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
        self, module: fx.GraphModule, keeping: KeepMasks | None = None, number: int = 0, prefix: str = ""
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
        node, name, record = self._node, op_name(self._node), operator_of(self._node)
        if name.startswith("_assert"):
            return None
        if record.drops:
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
        if self._keeping is not None and record.over_kept is not None:
            return record.over_kept(target, node, args, kwargs, self._keeps)
        return super().call_function(target, args, kwargs)

    def _keeps(self, node: fx.Node) -> tuple[tuple[Flags | None, ...], ...]:
        assert self._keeping is not None
        return self._keeping(self._number, f"{self._prefix}{node.name}")
