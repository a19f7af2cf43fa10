"""The check of a graph's calls: each is run on tensors without data before any is run with data."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.errors import first_line, shown
from prunekit.graph.captured_graph import Captured
from prunekit.graph.free_sizes import same_answer
from prunekit.graph.ops import OPERATORS, Operator
from prunekit.graph.ops.registry import MAX_PARTS, tensors_among
from prunekit.graph.size_run import COMPARISONS
from prunekit.saving.graph_values import (
    DTYPES,
    SIZES,
    argument_types,
    batch_norm_training,
    bernoulli_like,
    operator_name,
)

MAX_BYTES = 4 << 30
"""What the tensors that a graph makes may take at any one time, unless the user allows more: 4 GiB."""

MAX_INT = 2**31 - 1
"""The largest size, position or number of steps; those of a slice may be larger, and are cut to its axis."""

MAX_TEXT = 256
"""The longest text, such as the equation of an einsum."""

MAX_RESULTS = 100_000
"""The most tensors that all calls of a graph may return together."""

_MAX_SCALE = 1024.0
_MAX_DIMS = 16

_FAST_CONVOLUTIONS = (torch.float32, torch.bfloat16)


class NoDataRun:
    """A run of operators on tensors without data, that refuses calls past the limits before they are made.

    Args:
        max_bytes: the most that one tensor may take.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._results = 0
        self.inside = 0
        """The bytes of the largest tensor that the last call made on its way."""

    def call(self, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operator returns for tensors on the meta device.

        Raises:
            ValueError: naming the operator, for a call that is not allowed.
            Exception: whatever the operator raises for arguments that do not fit it.
        """
        name = operator_name(target)
        if name is None:
            raise ValueError(f"{target} is no operator that a saved graph may hold")
        _check_arguments(name, target, args, kwargs)
        with _Steps() as steps:
            found = called_without_data(target, args, kwargs)
        self._check_results(name, found)
        self.inside = max(steps.largest, _inside(name, args, kwargs, found))
        if self.inside > self._max_bytes:
            raise ValueError(f"it takes {self.inside:,} bytes on its way, allowed are {self._max_bytes:,}")
        return found

    def _check_results(self, name: str, found: Any) -> None:
        self._results += len(found) if isinstance(found, tuple | list) else 1
        if self._results > MAX_RESULTS:
            raise ValueError(f"its calls return more than {MAX_RESULTS:,} tensors")
        if name == "same_answer":
            return
        if name in SIZES:
            if type(found) is not int or abs(found) > MAX_INT:
                raise ValueError(f"{name} returns {shown(found, 60)}, which is no size")
            return
        for value in found if isinstance(found, tuple | list) else (found,):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} returns a {type(value).__name__}, which is no tensor")
            if value.device.type != "meta" or value.layout != torch.strided or value.dtype not in DTYPES:
                raise ValueError(f"{name} returns a tensor of a kind that a saved graph may not make")
            if value.dim() > _MAX_DIMS:
                raise ValueError(
                    f"{name} returns a tensor of {value.dim()} axes; at most {_MAX_DIMS} are allowed"
                )
            size = math.prod(value.shape) * value.element_size()
            if size > self._max_bytes:
                raise ValueError(
                    f"{name} returns a tensor of {size:,} bytes, allowed are {self._max_bytes:,}"
                )


class _Steps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The operators that a call falls into: an einsum of small tensors can have a large one on its way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be left out by the compiler its modules would be loaded, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in found if isinstance(found, tuple | list) else (found,):
            if isinstance(value, Tensor):
                self.largest = max(self.largest, _bytes(value))
        return found


def _bytes(value: Tensor) -> int:
    """Of a tensor if it were copied, whether or not it is expanded; in numbers of any length."""
    return math.prod(value.shape) * value.element_size()


def _inside(name: str, args: Sequence[Any], kwargs: Mapping[str, Any], found: Any) -> int:
    """The bytes that a kernel may take where no operator shows it: copies of other types, and columns."""
    given = tensors_among([*args, *kwargs.values()])
    made = tensors_among(found)
    if not given:
        return 0
    width = max(each.element_size() for each in [*given, *made])
    copies = max(math.prod(each.shape) for each in given) * width
    if _record(name)[0].convolves and len(given) > 1 and given[0].dtype not in _FAST_CONVOLUTIONS and made:
        image, kernel = given[0], given[1]
        places = max(math.prod(image.shape[2:]), math.prod(made[0].shape[2:]))
        copies = max(copies, image.shape[0] * math.prod(kernel.shape[1:]) * places * width)
    return copies


def called_without_data(target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operator returns for tensors on the meta device, where it makes all of its own, too."""
    names = list(argument_types(target))
    args, kwargs = list(args), dict(kwargs)
    if "device" in names:
        place = names.index("device")
        if place < len(args):
            args[place] = torch.device("meta")
        else:
            kwargs["device"] = torch.device("meta")
    with torch.no_grad():
        return target(*args, **kwargs)


def check_calls(graph: Captured, tensors: Mapping[str, Tensor], max_bytes: int = MAX_BYTES) -> None:
    """Refuse a graph that calls something that fails, or that takes more memory than allowed.

    Args:
        graph: as it was read from JSON.
        tensors: parameters and buffers by full name.
        max_bytes: what the tensors that the graph makes may take at any one time.

    Raises:
        ValueError: naming the node and the operator, for what is not allowed.
    """
    nodes = list(graph.graph.nodes)
    run = NoDataRun(max_bytes)
    given = iter(inputs_without_data(graph, tensors))
    values: dict[fx.Node, Any] = {}
    inside = [0] * len(nodes)
    for number, node in enumerate(nodes):
        if node.op == "placeholder":
            values[node] = next(given)
        elif node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                values[node] = run.call(node.target, args, kwargs)
                inside[number] = run.inside
            except Exception as error:  # whatever PyTorch raises for arguments that do not fit an operator
                raise ValueError(f"node {number}, {_name_of(node)}: {first_line(error)[:200]}") from None
    _check_outputs(graph, nodes[-1], values, tensors)
    peak = _peak(nodes, values, inside)
    if peak > max_bytes:
        raise ValueError(f"its tensors take {peak:,} bytes at one time, allowed are {max_bytes:,}")


def inputs_without_data(graph: Captured, tensors: Mapping[str, Tensor]) -> list[Any]:
    """A tensor on the meta device for each placeholder of a graph; None for what is no tensor."""
    found: list[Any] = []
    for node, (kind, name) in graph.placeholders.items():
        if kind == "user":
            val = node.meta.get("val")
            found.append(
                torch.empty(val.shape, dtype=val.dtype, device="meta") if isinstance(val, Tensor) else None
            )
        else:
            value = graph.constants[name] if kind == "constant" else tensors[name]
            found.append(value.detach().to("meta"))
    return found


def _check_arguments(
    name: str, target: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> None:
    if target is operator.getitem:
        _check_getitem(*args, **kwargs)
        return
    if target in (batch_norm_training, bernoulli_like):
        return
    if target is same_answer:
        if (
            kwargs
            or [type(each) for each in args] != [int, int, str, bool, str]
            or args[2] not in COMPARISONS
        ):
            raise ValueError("sizes are compared by a symbol, with an outcome and a line of code")
        return
    if name in SIZES and name != "sym_size.int":
        if kwargs or [type(each) for each in args] != [int, int]:
            raise ValueError("sizes are computed from two whole numbers")
        return
    types = argument_types(target)
    named = {**dict(zip(types, args, strict=False)), **kwargs}
    for key, value in named.items():
        _check_value(key, types.get(key, ""), value, name.startswith("slice"))
        if key.startswith("scale") and not name.startswith("scaled_dot") and value is not None:
            for scale in value if isinstance(value, list | tuple) else (value,):
                if not 1 / _MAX_SCALE <= scale <= _MAX_SCALE:
                    raise ValueError(f"{key} = {scale} is not in [1/{_MAX_SCALE:.0f}, {_MAX_SCALE:.0f}]")
    record, overload = _record(name)
    if record.check is not None:
        record.check(named)
    if overload in record.results and record.results[overload](*args, **kwargs) > MAX_PARTS:
        raise ValueError(f"it returns more than {MAX_PARTS:,} tensors")


def _record(name: str) -> tuple[Operator, str]:
    """The record of an operator that is saved under this name, and the overload."""
    packet, _, overload = name.partition(".")
    return OPERATORS.get(packet) or Operator(packet), overload


def _check_getitem(values: Any, index: Any) -> None:
    if not isinstance(values, tuple | list) or type(index) is not int or not 0 <= index < len(values):
        raise ValueError(f"there is no entry {index!r:.60}")


def _check_value(place: str, kind: str, value: Any, is_slice: bool) -> None:
    """Refuse a value of another kind than the schema says; PyTorch itself takes a number for a dtype."""
    if kind.startswith("Optional["):
        if value is None:
            return
        kind = kind.removeprefix("Optional[").removesuffix("]")
    if kind.startswith("List["):
        kind = kind.removeprefix("List[").removesuffix("]")
        if isinstance(value, list | tuple):
            if len(value) > MAX_PARTS:
                raise ValueError(f"{place} has {len(value):,} entries; at most {MAX_PARTS:,} are allowed")
            for each in value:
                _check_value(place, kind, each, is_slice)
            return
    if not _is_of(kind, value):
        raise ValueError(f"{place} = {shown(value, 60)} is no {kind}")
    if type(value) is int and kind in ("int", "SymInt") and abs(value) > MAX_INT and not is_slice:
        raise ValueError(f"{place} = {value} is not in [-{MAX_INT:,}, {MAX_INT:,}]")
    if value is True and place.endswith("pin_memory"):
        raise ValueError(f"{place} = True is not allowed")


def _is_of(kind: str, value: Any) -> bool:
    number = isinstance(value, bool | int | float) and (type(value) is not int or -(2**63) <= value < 2**63)
    if kind == "Tensor":  # a number stands for a tensor without axes
        return number or (isinstance(value, Tensor) and value.device.type == "meta")
    if kind in ("int", "SymInt"):
        return number and not isinstance(value, float)
    if kind == "bool":
        return isinstance(value, bool) or value in (0, 1)
    if kind in ("float", "number"):
        return number
    if kind == "str":
        return isinstance(value, str) and len(value) <= MAX_TEXT
    if kind == "ScalarType":
        return isinstance(value, torch.dtype) and value in DTYPES
    if kind == "Layout":
        return isinstance(value, torch.layout) and value == torch.strided
    return isinstance(value, {"MemoryFormat": torch.memory_format, "Device": torch.device}.get(kind, ()))


def _check_outputs(
    graph: Captured, output: fx.Node, values: Mapping[fx.Node, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Refuse outputs that are no single tensors, and new values of buffers that do not fit them."""
    for (kind, name), node in zip(graph.outputs, output.args[0], strict=True):  # type: ignore[arg-type]
        value = values[node] if isinstance(node, fx.Node) else node
        if isinstance(value, tuple | list):
            raise ValueError("one of its outputs is a list of tensors")
        if kind == "buffer" and (
            not isinstance(value, Tensor)
            or value.shape != tensors[name].shape
            or value.dtype != tensors[name].dtype
        ):
            raise ValueError(f"the new value of the buffer {name!r} does not fit it")


def _peak(nodes: Sequence[fx.Node], values: Mapping[fx.Node, Any], inside: Sequence[int]) -> int:
    """The most bytes that are held at one time, if each tensor is freed after the last node that reads it.

    What a call takes besides, on its way, is counted by its largest tensor that is none of its results. Views
    share the memory of what they are views of, so it is storages that are counted. Those of the inputs are
    there already.
    """
    born: dict[int, int] = {}
    last: dict[int, int] = {}
    sizes: dict[int, int] = {}
    given = {key for node in nodes if node.op == "placeholder" for key, _ in _storages(values[node])}
    for number, node in enumerate(nodes):
        for key, size in _storages(values.get(node)):
            if key not in given:
                born.setdefault(key, number)
                last[key], sizes[key] = number, size
        for before in node.all_input_nodes:
            for key, _ in _storages(values[before]):
                if key not in given:
                    last[key] = number
    change, results = [0] * (len(nodes) + 1), [0] * len(nodes)
    for key, size in sizes.items():
        change[born[key]] += size
        change[last[key] + 1] -= size
        results[born[key]] += size
    held = peak = 0
    for number in range(len(nodes)):
        held += change[number]
        peak = max(peak, held + max(inside[number] - results[number], 0))
    return peak


def _storages(value: Any) -> Iterator[tuple[int, int]]:
    for each in value if isinstance(value, tuple | list) else (value,):
        if isinstance(each, Tensor):
            storage = each.untyped_storage()
            yield storage._cdata, storage.nbytes()


def _name_of(node: fx.Node) -> str:
    return operator_name(node.target) or str(node.target)
