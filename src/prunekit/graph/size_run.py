"""Where the whole numbers come from that a network hands to PyTorch: attributes, sizes, or its code.

While a network is recorded, the whole numbers among its modules' attributes and the sizes of its tensors are
replaced by such that remember what they are, through arithmetic, too. Each argument of a recorded operator is
then known as an expression, such as `C // self.num_heads`.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph.places import CodePlace, place_here

OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
_DEEPEST = 20
"""Nested operations that an expression is followed through: sums over loops are none to be solved."""


@dataclass(frozen=True)
class Read:
    """An attribute of a module, or one entry of it if it is a tuple or list."""

    module: str
    attribute: str
    index: int | None = None


@dataclass(frozen=True)
class Extent:
    """The size of one axis of a node's value."""

    node: str
    axis: int


@dataclass(frozen=True)
class Computed:
    """An operation on two expressions."""

    operation: str
    first: Expression
    second: Expression
    depth: int = 1


Expression = int | Read | Extent | Computed
Place = tuple[int | str, ...]
"""Where an argument of a node is: its position or name, and where in it, if it is a list."""


@dataclass(frozen=True)
class SizeUse:
    """A whole number among the arguments of a node, what it is computed from, and the line of code."""

    node: str
    place: Place
    expression: Expression
    line: CodePlace | None


@dataclass(frozen=True)
class Comparison:
    """What a network's code asked of two whole numbers, what came out, and the line of code."""

    symbol: str
    first: Expression
    second: Expression
    outcome: bool
    line: CodePlace | None


COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass
class SizeUses:
    """What a recording saw of whole numbers.

    Attributes:
        arguments: of nodes.
        equal: pairs of expressions that the code compared and found equal.
        compared: comparisons with the size of a tensor, with what came out of them.
        keys: names of attributes that the code looks things up by: they stay plain numbers.
        hashed: the names of those that it tried to look something up by.
    """

    arguments: list[SizeUse] = field(default_factory=list)
    equal: list[tuple[Expression, Expression]] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    keys: frozenset[str] = frozenset()
    hashed: set[str] = field(default_factory=set)


class Size(int):
    """A whole number with the expression that it comes from.

    It gives no hash, so that no cache keeps it, or hands it to code that it does not come from.
    """

    expression: Expression
    uses: SizeUses

    def __new__(cls, value: int, expression: Expression, uses: SizeUses) -> Size:
        """One of that value."""
        made = super().__new__(cls, value)
        made.expression, made.uses = expression, uses
        return made

    def __hash__(self) -> int:
        """None: a recording that comes to this is made again with a plain number."""
        if isinstance(self.expression, Read):
            self.uses.hashed.add(self.expression.attribute)
        raise TypeError(f"unhashable type: {type(self).__name__!r}")

    def __eq__(self, other: object) -> bool:
        """Compared as the number; what is found equal is written down."""
        same = int.__eq__(self, other)
        if same is True:
            self.uses.equal.append((self.expression, expression_of(other)))
        if same is not NotImplemented:
            _note(self, "==", other, same)
        return same

    def __ne__(self, other: object) -> bool:
        """Likewise."""
        same = self == other
        return same if same is NotImplemented else not same


def expression_of(value: Any) -> Expression:
    """What a whole number comes from: itself, if it stands in the code."""
    return value.expression if isinstance(value, Size) else int(value)


def _note(size: Size, symbol: str, other: Any, outcome: bool) -> None:
    """Write a comparison down, if the size of a tensor is in it."""
    pair = size.expression, expression_of(other)
    if any(map(_has_extent, pair)):
        size.uses.compared.append(Comparison(symbol, *pair, outcome, place_here(place_here.__code__)))


def _has_extent(expression: Expression) -> bool:
    if isinstance(expression, Computed):
        return _has_extent(expression.first) or _has_extent(expression.second)
    return isinstance(expression, Extent)


def _comparing(symbol: str, name: str) -> Callable[[Size, Any], Any]:
    def compare(first: Size, second: Any) -> Any:
        outcome = getattr(int, name)(first, second)
        if outcome is not NotImplemented:
            _note(first, symbol, second, outcome)
        return outcome

    return compare


for _symbol, _name in {"<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}.items():
    setattr(Size, _name, _comparing(_symbol, _name))


def _operation(symbol: str, swapped: bool, first: Size, second: Any) -> Any:
    pair = (second, first) if swapped else (first, second)
    if not isinstance(second, int) or isinstance(second, bool):
        return NotImplemented
    found = OPERATIONS[symbol](*map(int, pair))
    one, other = map(expression_of, pair)
    depth = 1 + max(each.depth if isinstance(each, Computed) else 0 for each in (one, other))
    return Size(found, Computed(symbol, one, other, depth), first.uses) if depth < _DEEPEST else found


def _method(symbol: str, swapped: bool) -> Callable[[Size, Any], Any]:
    return lambda first, second: _operation(symbol, swapped, first, second)


for _symbol, _name in {"+": "add", "-": "sub", "*": "mul", "//": "floordiv", "%": "mod"}.items():
    setattr(Size, f"__{_name}__", _method(_symbol, swapped=False))
    setattr(Size, f"__r{_name}__", _method(_symbol, swapped=True))


def plain(value: Any) -> Any:
    """Arguments with plain whole numbers in the place of those that remember."""
    if isinstance(value, Size):
        return int(value)
    if type(value) in (tuple, list, torch.Size):
        return type(value)([plain(each) for each in value]) if holds_sizes(value) else value
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value


def holds_sizes(value: Any) -> bool:
    """Whether one that remembers is among nested arguments."""
    if isinstance(value, (tuple, list)):
        return any(map(holds_sizes, value))
    if isinstance(value, slice):
        return any(map(holds_sizes, (value.start, value.stop, value.step)))
    return isinstance(value, Size)


# ---- in the place of attributes and of the sizes of tensors ------------------------------------------------


def is_size(value: Any) -> bool:
    """Whether an attribute may count units: a whole number, or a tuple or list of such."""
    if type(value) in (tuple, list, torch.Size):
        return bool(value) and all(type(each) is int for each in value)
    return type(value) is int


_FOLLOWING = (nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)
"""PyTorch's layers, of which there are many, whose sizes follow from their tensors and operators."""


@contextmanager
def remembering(model: nn.Module, uses: SizeUses) -> Iterator[None]:
    """The whole numbers among the attributes of a network's modules remember what they are.

    Keys do not. Afterwards they are what they were, but for those that the network has written to.
    """
    replaced: list[tuple[dict[str, Any], str, Any, Any]] = []
    for place, module in model.named_modules():
        if isinstance(module, _FOLLOWING) and type(module).__module__.startswith("torch.nn."):
            continue
        held = vars(module)
        for name, value in list(held.items()):
            if is_size(value) and name not in uses.keys:
                held[name] = _remembers(value, partial(Read, place, name), uses)
                replaced.append((held, name, value, held[name]))
    try:
        yield
    finally:
        for held, name, value, instead in replaced:
            if held.get(name) is instead:
                held[name] = value
                if isinstance(value, list) and plain(instead) != value:
                    value[:] = plain(instead)


def _remembers(value: Any, read: Callable[..., Read], uses: SizeUses) -> Any:
    if isinstance(value, int):
        return Size(value, read(), uses)
    return type(value)([Size(each, read(index), uses) for index, each in enumerate(value)])


class SizeMode(TorchFunctionMode):
    """Ties the arguments of PyTorch's functions to those of the operators that are recorded for them.

    Args:
        graph: that is recorded.
        node_of: the node that gave a tensor; None if there is none.
        uses: what is seen.
    """

    def __init__(self, graph: fx.Graph, node_of: Callable[[Tensor], fx.Node | None], uses: SizeUses) -> None:
        super().__init__()
        self._graph, self._node_of, self._uses = graph, node_of, uses

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call it with plain numbers."""
        kwargs = kwargs or {}
        if getattr(func, "__self__", None) is Tensor.shape or func is Tensor.size:
            return self._sizes(func, args, kwargs)
        if not holds_sizes(args) and not (kwargs and holds_sizes(list(kwargs.values()))):
            return func(*args, **kwargs)
        last = self._graph._root.prev
        result = func(*map(plain, args), **{name: plain(value) for name, value in kwargs.items()})
        node, line = last.next, place_here(place_here.__code__)
        while node.op != "root":
            self._tie(func, args, kwargs, node, line)
            node = node.next
        return result

    def _sizes(self, func: Any, args: Any, kwargs: Any) -> Any:
        found = func(*map(plain, args), **kwargs)
        node = self._node_of(args[0])
        if node is None:
            return found
        if isinstance(found, int):
            axis = int(args[1] if len(args) > 1 else kwargs["dim"])
            return Size(found, Extent(node.name, axis % args[0].dim()), self._uses)
        return torch.Size(
            [Size(size, Extent(node.name, axis), self._uses) for axis, size in enumerate(found)]
        )

    def _tie(self, func: Any, args: Any, kwargs: Any, node: fx.Node, line: CodePlace | None) -> None:
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return
        if getattr(func, "__name__", "") == "__getitem__":
            self._tie_slice(args[1], node, line)
            return
        for position, each in enumerate(schema.arguments):
            given = kwargs.get(each.name)
            if position < len(args):
                given = args[position]
                if isinstance(given, int) and "List" in str(each.type):
                    given = list(args[position:])  # as in x.view(2, 3, 4)
            if given is not None and holds_sizes(given):
                inside: Any = position if position < len(node.args) else each.name
                value = node.args[position] if position < len(node.args) else node.kwargs.get(each.name)
                self._tie_argument(given, value, node, (inside,), line)

    def _tie_argument(
        self, given: Any, value: Any, node: fx.Node, place: Place, line: CodePlace | None
    ) -> None:
        if isinstance(given, int) and isinstance(value, int) and int(given) == value:
            self._uses.arguments.append(SizeUse(node.name, place, expression_of(given), line))
        elif isinstance(given, (tuple, list)) and isinstance(value, (tuple, list)):
            if len(given) == len(value):
                for index, pair in enumerate(zip(given, value, strict=True)):
                    if isinstance(pair[0], int):
                        self._tie_argument(*pair, node, (*place, index), line)
        elif isinstance(given, int) and isinstance(value, (tuple, list)):
            for index, each in enumerate(value):
                self._tie_argument(given, each, node, (*place, index), line)

    def _tie_slice(self, index: Any, node: fx.Node, line: CodePlace | None) -> None:
        """`x[:, start:end]`, of which each slice becomes a node."""
        parts = index if isinstance(index, tuple) else (index,)
        if node.target is not torch.ops.aten.slice.Tensor:
            return
        for each in parts:
            if not isinstance(each, slice):
                continue
            given = (each.start or 0, sys.maxsize if each.stop is None else each.stop)
            if plain(given) == tuple(node.args[2:4]):
                for position, bound in enumerate(given, 2):
                    if isinstance(bound, Size):
                        self._tie_argument(bound, node.args[position], node, (position,), line)
