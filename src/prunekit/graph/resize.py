"""A freshly built network made to the sizes of a saved one that lost units, whatever its form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from prunekit.errors import ModelError, shown
from prunekit.graph.capture import tensors_of
from prunekit.graph.ops import OPERATORS, Operator
from prunekit.graph.propagate import is_pointwise
from prunekit.graph.rows import CONVOLUTIONS
from prunekit.graph.size_run import is_size
from prunekit.graph.sizes import sizes_of_module
from prunekit.graph.surgery import Cut, Surgery
from prunekit.modes import evaluating, untouched
from prunekit.targets import unwrap, weight_of

Shapes = Mapping[str, Sequence[int]]
Sizes = Mapping[str, Mapping[str, Any]]
_SPELLINGS = {"iadd": "add", "isub": "sub", "imul": "mul", "truediv": "div", "itruediv": "div"}


def restore_sizes(model: nn.Module, shapes: Shapes, attributes: Sizes | None = None) -> Callable[[], None]:
    """Give parameters, buffers and the attributes that keep sizes, in place, those of a saved network.

    Before anything is changed, the shapes of each layer's tensors are compared with each other, with its
    attributes, and with the layers before it, where `forward` can be followed. The values are then of no
    meaning, and tied parameters may not be tied any more.

    Args:
        model: a freshly built network of the class that was shrunk.
        shapes: the shape of every entry of its state and, if these changed, of other buffers, by full name.
        attributes: as `size_attributes` gives them; those that are not given follow from the shapes where
            they can, as numbers of heads cannot.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: if something is not there, would have to grow or to vanish, or is not what removing units
            gives; the model is then as it was.
    """
    model = unwrap(model)
    lacking = next((name for name in model.state_dict(keep_vars=True) if name not in shapes), None)
    if lacking is not None:
        raise ModelError(f"the model is not the one that was shrunk: the shapes have no {lacking!r}")
    tensors = _smaller(model, shapes)
    cut = Cut(tensors, _changed(model, _checked(model, shapes, attributes or {})))
    if tensors:
        _check_neighbours(model, shapes)
    surgery = Surgery(model)
    try:
        surgery.cut(cut)
    except BaseException:
        surgery.undo()
        raise
    return surgery.undo


# ---- each tensor and each attribute for itself -------------------------------------------------------------


def _smaller(model: nn.Module, shapes: Shapes) -> dict[str, dict[int, Tensor]]:
    every = tensors_of(model, every_name=True)
    found: dict[str, dict[int, Tensor]] = {}
    seen: set[tuple[int, str]] = set()  # a module that has two names is cut once
    for name, wanted in shapes.items():
        place, _, short = name.rpartition(".")
        if name not in every:
            raise ModelError(f"the model has no {name!r}")
        own = tuple(every[name].shape)
        if not _shrinks(own, wanted):
            units = f": it has {own[0]} units, and keeps 1 to {own[0]}" if own else ""
            raise ModelError(f"{name} has shape {own}, it cannot be made {tuple(wanted)}{units}")
        here = (id(model.get_submodule(place)), short)
        if own != tuple(wanted) and here not in seen:
            seen.add(here)
            found[name] = {
                axis: torch.arange(old) < new for axis, (old, new) in enumerate(zip(own, wanted, strict=True))
            }
    return found


def _changed(model: nn.Module, attributes: Sizes) -> dict[tuple[str, str], Any]:
    modules = dict(model.named_modules(remove_duplicate=False))
    found: dict[tuple[str, str], Any] = {}
    for place, values in attributes.items():
        for name, value in values.items():
            before = vars(modules[place]).get(name) if place in modules else None
            if not is_size(before) or isinstance(before, int) != isinstance(value, int):
                where = repr(place) if place else "the model"
                raise ModelError(f"{where} keeps no size {name!r} as the saved network does")
            if list(_as_list(before)) != list(_as_list(value)):
                if not _shrinks(_as_list(before), _as_list(value)):
                    where = f"{place}.{name}" if place else name
                    raise ModelError(
                        f"{where} is {before} in the model, it cannot be made {shown(value)}: "
                        "sizes get smaller, and stay at least 1"
                    )
                kind = type(getattr(model.get_submodule(place), name))
                found[place, name] = value if kind is int else kind(value)
    return found


def _shrinks(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether sizes are as many as before and none grows, or vanishes."""
    return len(before) == len(after) and all(
        new == old or 1 <= new <= old for old, new in zip(before, after, strict=True)
    )


def _as_list(size: Any) -> Sequence[int]:
    return [size] if isinstance(size, int) else size


# ---- the tensors and attributes of one layer ---------------------------------------------------------------


def _checked(model: nn.Module, shapes: Shapes, attributes: Sizes) -> Sizes:
    """The attributes that are given and those that follow from the shapes, which must agree."""
    every = tensors_of(model, every_name=True)
    found = {place: dict(values) for place, values in attributes.items()}
    told: dict[tuple[str, str], str] = {}  # which tensor an attribute follows from
    for name, wanted in shapes.items():
        place, short = weight_of(name)
        module = model.get_submodule(place)
        groups = attributes.get(place, {}).get("groups", getattr(module, "groups", 1))
        own = sizes_of_module(module, short, tuple(every[name].shape), getattr(module, "groups", 1))
        kernel = getattr(module, "kernel_size", None)
        if own and short == "weight" and isinstance(kernel, tuple) and tuple(wanted[2:]) != kernel:
            expected = (*wanted[:2], *kernel)
            raise ModelError(_refusal(name, shapes, f"it would be {expected}"))
        if any(vars(module).get(attribute) != value for attribute, value in own.items()):
            continue  # a layer of the user's own, which means something else by it
        for attribute, value in sizes_of_module(module, short, tuple(wanted), groups).items():
            known = found.setdefault(place, {}).setdefault(attribute, value)
            source = told.setdefault((place, attribute), name)
            if list(_as_list(known)) != list(_as_list(value)):
                by = f" after {source}" if source != name else ""
                raise ModelError(_refusal(name, shapes, f"{attribute} is {shown(known)}{by}"))
    return found


def _refusal(name: str, shapes: Shapes, why: str) -> str:
    shape = tuple(shapes[name])
    return f"{name} of the saved network has shape {shape}, which removing units does not give: {why}"


# ---- one layer and the next --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Width:
    """How many units a tensor carries: of which weight, how many before and after, and along which axis.

    `layout` is "channels" for the second axis, "features" for the last one, and "flat" for the last one with
    several neighbouring entries for each unit.
    """

    weight: str
    before: int
    after: int
    layout: Literal["channels", "features", "flat"]


class _ForwardTracer(fx.Tracer):
    """Stops at modules that have parameters themselves; buffers are symbols, too, and not written to."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return next(m.parameters(recurse=False), None) is not None


def _check_neighbours(model: nn.Module, shapes: Shapes) -> None:
    """Refuse layers that read another number of units than the layers before them make.

    The units are followed through pointwise operators, pooling, batch norms and flattening; where something
    else is done to them, nothing is known.
    """
    graph = _traced(model)
    known: dict[fx.Node, _Width | None] = {}
    for node in graph.nodes if graph is not None else ():
        given = [width for source in node.all_input_nodes if (width := known.get(source)) is not None]
        if node.op == "output":
            for width in given:
                if width.after != width.before:
                    raise ModelError(
                        _refusal(width.weight, shapes, f"the network has {width.before} outputs")
                    )
        elif node.op == "call_module":
            known[node] = _of_layer(model.get_submodule(str(node.target)), node, given, shapes)
        elif node.op in ("call_function", "call_method"):
            known[node] = _of_function(node, given, shapes)


def _traced(model: nn.Module) -> fx.Graph | None:
    """The calls in `forward`, on symbols; None where it cannot be read so. The model stays as it was."""
    with untouched(model), evaluating(model):
        try:
            return _ForwardTracer().trace(model)
        except Exception:  # whatever the user's forward does with symbols
            return None


def _of_layer(module: nn.Module, node: fx.Node, given: Sequence[_Width], shapes: Shapes) -> _Width | None:
    """What a layer hands on, once what it reads was checked."""
    weight, read = f"{node.target}.weight", given[0] if len(given) == 1 else None
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and read is not None:
        if weight not in shapes or not _fit(read, module.num_features):
            return None
        _check_read(read, module.num_features, shapes[weight][0], weight, shapes)
        return read
    if weight not in shapes or getattr(module, "groups", 1) != 1:
        return None
    if isinstance(module, nn.Linear):
        if read is not None and read.layout != "channels" and _fit(read, module.in_features):
            _check_read(read, module.in_features, shapes[weight][1], weight, shapes)
        return _Width(weight, module.out_features, shapes[weight][0], "features")
    if isinstance(module, CONVOLUTIONS):
        if read is not None and read.layout == "channels" and _fit(read, module.in_channels):
            _check_read(read, module.in_channels, shapes[weight][1], weight, shapes)
        return _Width(weight, module.out_channels, shapes[weight][0], "channels")
    return None


def _fit(read: _Width, before: int) -> bool:
    """Whether a layer with so many inputs reads the units, rather than something else."""
    return before % read.before == 0 if read.layout == "flat" else before == read.before


def _check_read(read: _Width, before: int, after: int, weight: str, shapes: Shapes) -> None:
    expected = before // read.before * read.after
    if after != expected:
        raise ModelError(_refusal(weight, shapes, f"it reads {expected} inputs behind {read.weight}"))


def _of_function(node: fx.Node, given: Sequence[_Width], shapes: Shapes) -> _Width | None:
    """What a function or method hands on, which is nothing where it may do something else to the units."""
    name = (
        node.target.removesuffix("_")
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", "")
    )
    name = _SPELLINGS.get(name, name)
    record = OPERATORS.get(name) or Operator(name)
    first = given[0] if given else None
    if first is None or first.before == 1:
        return None
    if name == "flatten":
        arguments = [*node.args[1:], node.kwargs.get("start_dim"), node.kwargs.get("end_dim")]
        flat = [each for each in arguments if each is not None] in ([1], [1, -1])
        return _Width(first.weight, first.before, first.after, "flat") if flat else None
    if name in ("view", "reshape"):
        sizes = node.args[1] if isinstance(node.args[1], tuple | list) else node.args[1:]
        flat = len(sizes) == 2 and first.layout == "channels"
        return _Width(first.weight, first.before, first.after, "flat") if flat else None
    if record.passes_units and (record.drops or first.layout == "channels"):
        return first
    if not is_pointwise(record) and name not in ("softmax", "log_softmax"):
        return None
    for other in given[1:]:
        if (other.before, other.layout) != (first.before, first.layout):
            return None
        if other.after != first.after:
            raise ModelError(
                _refusal(other.weight, shapes, f"its units meet {first.after} of {first.weight}")
            )
    return first
