"""Runs in double precision, and how far apart two networks' outputs are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from prunekit.errors import ModelError
from prunekit.graph.captured_graph import op_name
from prunekit.graph.depthwise import depthwise
from prunekit.graph.ops import operator_of
from prunekit.graph.ops.registry import Kept
from prunekit.seeds import seeded

_WIDE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex32: torch.complex128,
}


def doubled(value: Any) -> Any:
    """The value, or the double precision for a narrower type of real or complex numbers."""
    return _WIDE.get(value, value) if isinstance(value, torch.dtype) else value


_DROPPING = {"scaled_dot_product_attention": 4, "multi_head_attention_forward": 10}
"""The place of the argument `dropout_p`."""
_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


class Exactly(TorchFunctionMode):
    """Functions and operators of torch called in it do not drop anything and compute in double precision."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Call it with other types, or leave it out."""
        name = getattr(getattr(func, "overloadpacket", func), "__name__", "")
        if name == "__get__":  # of an attribute, such as its shape
            return func(*args)
        kwargs = {key: doubled(value) for key, value in (kwargs or {}).items()}
        if name == "native_dropout":
            return args[0], torch.ones_like(args[0], dtype=torch.bool)
        if "dropout" in name and args and isinstance(args[0], Tensor):
            return args[0]
        if "dropout" in name and isinstance(kwargs.get("input"), Tensor):
            return kwargs["input"]
        if name in _DROPPING:  # functions within these do not come here
            place = _DROPPING[name]
            args = (*args[:place], *((0.0,) if len(args) > place else ()), *args[place + 1 :])
            if "dropout_p" in kwargs:
                kwargs["dropout_p"] = 0.0
        if name in _RECURRENT:  # the only argument that is such a number is that of their dropout
            args = tuple(0.0 if isinstance(each, float) else each for each in args)
        if name in ("float", "half", "bfloat16") and args and isinstance(args[0], Tensor):
            return args[0].double()
        args = tuple(map(doubled, args))
        if name in _CONVOLUTIONS and (found := depthwise(*args, **kwargs)) is not None:
            return found
        return func(*args, **kwargs)


@contextmanager
def exact() -> Iterator[None]:
    """Double precision, no dropout, and the same random numbers each time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with seeded(0), Exactly():
            yield
    finally:
        torch.set_default_dtype(before)


class Interpreter(fx.Interpreter):
    """Runs a captured graph, without its checks of dtypes and sizes; within `exact()`, exactly.

    Args:
        module: the graph.
        keeping: `(name of a node)`, what stays of it: statistics run over that only; None for all.
        prefix: of the names of its nodes.
    """

    def __init__(
        self, module: fx.GraphModule, keeping: Callable[[str], Kept] | None = None, prefix: str = ""
    ) -> None:
        super().__init__(module)
        self._keeping, self._prefix = keeping, prefix
        self._node: fx.Node | None = None

    def run_node(self, node: fx.Node) -> Any:
        """Remember which node it is."""
        self._node = node
        return super().run_node(node)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the node calls, also within a graph that it runs, such as what is under no_grad."""
        assert self._node is not None
        node, record = self._node, operator_of(self._node)
        if op_name(node).startswith("_assert"):
            return None
        inner = next((place for place, arg in enumerate(args) if isinstance(arg, fx.GraphModule)), None)
        if inner is not None:
            below = Interpreter(args[inner], self._keeping, f"{self._prefix}{node}/")
            grad = args[0] if isinstance(args[0], bool) else torch.is_grad_enabled()
            with torch.set_grad_enabled(grad):
                return below.run(*args[inner + 1 :])
        if self._keeping is not None and record.over_kept is not None:
            return record.over_kept(target, node, args, kwargs, self._keeps)
        return super().call_function(target, args, kwargs)

    def _keeps(self, node: fx.Node) -> Kept:
        assert self._keeping is not None
        return self._keeping(f"{self._prefix}{node.name}")


_ROUNDINGS = 1000  # units in the last place that a layer may be off by, for sums of up to about 10^6 terms
_LARGE = 1e300  # larger magnitudes are no scale: they would overflow
_PIECE = 2**17  # numbers that are compared at once, which fit into the processor's cache


class VerificationError(ModelError):
    """A smaller network that does not compute what the masked one does; the model was put back as it was."""


@dataclass(frozen=True)
class Deviation:
    """The largest difference between two networks, over all that was compared.

    Attributes:
        largest: the absolute difference.
        relative: the difference over the largest magnitude that occurs: among the outputs of all layers for
            an output, among all gradients for a gradient.
        tolerance: what `relative` may be at most.
        where: which number differs most, such as `output 3 of example 0`.
    """

    largest: float
    relative: float
    tolerance: float
    where: str

    @property
    def accepted(self) -> bool:
        """Whether the difference is that of rounding."""
        return self.relative <= self.tolerance

    def __str__(self) -> str:
        sign = "<=" if self.accepted else ">"
        relative = f"{self.relative:.2g} relative {sign} {self.tolerance:.2g}"
        return f"{self.where} is off by {self.largest:.2g} ({relative})"


def layers_in(model: nn.Module) -> int:
    """How many modules have parameters of their own."""
    return sum(any(True for _ in module.parameters(recurse=False)) for module in model.modules())


def rounding(layers: int, dtype: torch.dtype, roundings: int = _ROUNDINGS) -> float:
    """The relative difference that so many units in the last place make for each layer."""
    return roundings * torch.finfo(dtype).eps * max(1, layers)


def of_outputs(
    expected: Sequence[Tensor], found: Sequence[Tensor], magnitude: float, tolerance: float, what: str
) -> list[Deviation]:
    """Of each output, relative to the largest number in it or `magnitude`; `what` was run stands behind it.

    Raises:
        VerificationError: where shapes differ.
    """
    shapes, others = ([tuple(tensor.shape) for tensor in each] for each in (expected, found))
    if shapes != others:
        several = len(shapes) != 1 or len(others) != 1
        one, other = (shapes, others) if several else (shapes[0], others[0])
        raise VerificationError(f"outputs have shape{'s' if several else ''} {other} in place of {one}")
    deviations = []
    for number, (right, given) in enumerate(zip(expected, found, strict=True)):
        scale = max(largest(right), magnitude)
        name = f" of output {number}" if len(expected) > 1 else ""
        where = partial(_output, name=name, what=what)
        deviations.append(difference(right.detach(), given.detach(), scale, tolerance, where))
    return deviations


def _output(index: list[int], name: str, what: str) -> str:
    if name:
        return f"number {index}{name}{what}"
    return f"output {', '.join(map(str, index[1:])) or '0'} of example {(index or [0])[0]}{what}"


def difference(
    expected: Tensor, found: Tensor, scale: float, tolerance: float, where: Callable[[list[int]], str]
) -> Deviation:
    """The largest difference of two tensors, relative to a scale; numbers that are none agree with such.

    Raises:
        VerificationError: where shapes differ.
    """
    if expected.shape != found.shape:
        raise VerificationError(
            f"{where([])} has shape {tuple(found.shape)} in place of {tuple(expected.shape)}"
        )
    if not expected.numel():
        return Deviation(0.0, 0.0, tolerance, where([]))
    largest, place, start = 0.0, 0, 0
    pieces = (torch.split(each.reshape(-1), _PIECE) for each in (expected, found))
    for one, other in zip(*pieces, strict=True):
        apart = one - other
        farthest = _farthest(apart)
        if not math.isfinite(farthest):
            same = (one == other) | (one.isnan() & other.isnan())
            apart = torch.where(same, 0.0, apart.abs_()).nan_to_num(nan=torch.inf)
            farthest = _farthest(apart)
        if abs(farthest) > largest:
            # PyTorch's argmax takes four times as long as all of this
            largest, place = abs(farthest), start + int((apart == farthest).nonzero()[0])
        start += len(apart)
    relative = 0.0 if largest == 0 else largest / scale if scale > 0 else float("inf")
    index = [int(step) for step in np.unravel_index(place, tuple(expected.shape))]
    return Deviation(largest, relative, tolerance, where(index))


def largest(tensor: Tensor, of_all: float | None = None) -> float:
    """The largest finite magnitude; `of_all` is the `magnitude`, if it is known."""
    found = magnitude(tensor) if of_all is None else of_all
    if not math.isfinite(found):
        found = float(tensor.detach().abs().nan_to_num(posinf=0).max())
    return min(found, _LARGE)


def magnitude(tensor: Tensor) -> float:
    """The largest magnitude, not finite if any is not; 0 of nothing. No second tensor is made for it."""
    return abs(_farthest(tensor.detach())) if tensor.numel() else 0.0


def _farthest(tensor: Tensor) -> float:
    """The entry that is farthest from zero; what is no number, if any is not."""
    low, high = map(float, tensor.aminmax())
    return low if -low > high else high
