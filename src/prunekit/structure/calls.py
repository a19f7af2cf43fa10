"""Layers, functions and methods called in `forward`, as operations of a chain."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from prunekit.errors import ModelError
from prunekit.structure.chain import Stage
from prunekit.structure.operations import (
    ARITHMETIC,
    DIVISIONS,
    DROPOUT_FUNCTIONS,
    POINTWISE_FUNCTIONS,
    POINTWISE_METHODS,
    POOL_FUNCTIONS,
    SOFTMAX_FUNCTIONS,
    Kind,
    Operation,
    module_operation,
    shared_parameters,
)

_SHAPED = "lays units out in a new shape"


class _Here:
    """Stands in a call's arguments for the tensor that flows through the chain."""


@dataclass(frozen=True)
class Call:
    """A function or method with all its arguments but the tensor."""

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    in_place: bool

    def __call__(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.in_place:
            x = x.clone()
        args = [x if isinstance(value, _Here) else value for value in self.args]
        if isinstance(self.target, str):
            return getattr(args[0], self.target)(*args[1:], **self.kwargs)
        named = {key: x if isinstance(value, _Here) else value for key, value in self.kwargs.items()}
        return self.target(*args, **named)


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


def module_stage(name: str, module: nn.Module) -> Stage:
    """A module as a stage, which leaves what it is given as it is."""
    return Stage(name, Copied(module) if getattr(module, "inplace", False) else module, module)


class LayerReader:
    """Calls of layers as operations, one after the other.

    Attributes:
        layer: the last one that mixes units, which is the one to name; empty before the first.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layer = ""
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._shared = shared_parameters(model)
        self._visited: set[str] = set()

    def read(self, name: str) -> Operation:
        """The operation that a layer is.

        Raises:
            ModelError: if a chain cannot hold it, or something else reads its weights.
        """
        module = self._modules[name]
        found = module_operation(module)
        if isinstance(found, str):
            raise ModelError(f"{name!r} ({type(module).__name__}) is no link of a chain: {found}")
        kind, note = found
        if kind is Kind.LAYER:
            self.layer = name
        if kind in (Kind.LAYER, Kind.NORM):
            self._check_own(name, module)
        return Operation(kind, module_stage(name, module), note)

    def refused(self, why: str) -> ModelError:
        """What is said of the last layer, if what follows makes it no link of a chain."""
        what = f"layer {self.layer!r} is" if self.layer else "the model's input is"
        return ModelError(f"{what} no link of a chain: {why}")

    def _check_own(self, name: str, module: nn.Module) -> None:
        """Units can only be told by the layer if nothing else reads its weights."""
        if name in self._visited:
            raise ModelError(f"layer {name!r} is no link of a chain: it is used twice")
        self._visited.add(name)
        for short, _ in module.named_parameters(recurse=False):
            other = self._shared.get(f"{name}.{short}")
            if other is None:
                continue
            if self._modules[other.rpartition(".")[0]] is module:
                raise ModelError(f"layer {name!r} is no link of a chain: it is used twice, also as {other}")
            raise ModelError(f"layer {name!r} is no link of a chain: its {short} is tied with {other}")


def is_flatten(stage: Stage) -> bool:
    """Whether a stage lays the positions of units beside each other."""
    return isinstance(stage.module, nn.Flatten) or (
        isinstance(stage.run, Reshaped) and len(stage.run.sizes) == 1
    )


def is_size(node: fx.Node) -> bool:
    """Whether a node is a number or numbers made from a tensor's shape, and no tensor."""
    if node.op == "call_method" and node.target in ("size", "dim", "numel", "ndimension"):
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in ("shape", "ndim", "device", "dtype")
    return (
        node.op == "call_function" and bool(node.all_input_nodes) and all(map(is_size, node.all_input_nodes))
    )


def short_name(node: fx.Node) -> str:
    """A call's name as written in `forward`."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))


def call_operation(node: fx.Node) -> Operation | str:
    """What a function or method call does to units, or why a chain cannot hold it.

    Args:
        node: a call whose only tensor argument is the one that flows through the chain.
    """
    if short_name(node) in ("view", "reshape", "flatten"):
        return _shaping(node)
    if any(is_size(argument) for argument in node.all_input_nodes):
        return "takes a number from a tensor's shape"
    stage = Stage(f"{short_name(node)}()", _call(node), None)
    if _is_pointwise(node):
        return Operation(Kind.POINTWISE, stage)
    if node.target in POOL_FUNCTIONS:
        return Operation(Kind.POOL, stage)
    if node.target in DROPOUT_FUNCTIONS:
        if _argument(node, "training", True):
            return "drops units in evaluation, too: give it `training=self.training`"
        return Operation(Kind.POINTWISE, stage)
    if node.target in SOFTMAX_FUNCTIONS or short_name(node) in ("softmax", "log_softmax"):
        return Operation(Kind.SIDE, stage, "mixes units")
    if short_name(node) in ("squeeze", "unsqueeze") and any(
        place in (*node.args[1:], *node.kwargs.values()) for place in (1, -1)
    ):
        return Operation(Kind.SIDE, stage, _SHAPED)
    return "is none of the operations that a chain can hold"


def _is_pointwise(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in POINTWISE_METHODS
    if node.target in DIVISIONS:
        return isinstance(node.args[0], fx.Node) and len(node.args) == 2
    return node.target in POINTWISE_FUNCTIONS or node.target in ARITHMETIC


def _call(node: fx.Node) -> Call:
    def put(value: Any) -> Any:
        return fx.node.map_arg(value, lambda _: _Here())  # type: ignore[arg-type, return-value]

    in_place = bool(_argument(node, "inplace", False)) or short_name(node).endswith("_")
    kwargs = {key: put(value) for key, value in node.kwargs.items()}
    return Call(node.target, tuple(map(put, node.args)), kwargs, in_place)


def _argument(node: fx.Node, name: str, default: Any) -> Any:
    """An argument of a function, however it was given."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a built-in function without a signature
        return node.kwargs.get(name, default)
    return bound.arguments.get(name, default)


def _shaping(node: fx.Node) -> Operation | str:
    """Flattening, or another shape, which only fits the network's ends."""
    name = f"{short_name(node)}()"
    if short_name(node) == "flatten":
        start, end = (*node.args[1:], *([None] * 2))[:2]
        start = node.kwargs.get("start_dim", start)
        end = node.kwargs.get("end_dim", end)
        if start != 1 or end not in (None, -1):
            return "does not flatten all but the first dimension"
        return Operation(Kind.FLATTEN, Stage(name, Reshaped((-1,)), None))
    if node.kwargs:
        return "is given its shape by keyword"
    shape = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
    batch, sizes = shape[0], tuple(size for size in shape[1:] if isinstance(size, int))
    if len(sizes) != len(shape) - 1:
        return "is given a shape that is computed"
    if not (batch == -1 and -1 not in sizes) and not _is_batch(batch):
        return "does not keep the batch as its first dimension"
    stage = Stage(name, Reshaped(sizes), None)
    if len(sizes) == 1:
        return Operation(Kind.FLATTEN, stage, "" if sizes[0] == -1 else str(sizes[0]))
    return Operation(Kind.SIDE, stage, _SHAPED)


def _is_batch(value: Any) -> bool:
    """Whether a value is the number of examples: the first size of any tensor of a chain."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return (*value.args[1:], *value.kwargs.values()) == (0,)
    if value.target is operator.getitem and value.args[1] == 0:
        source = value.args[0]
        return isinstance(source, fx.Node) and is_size(source)
    return False
