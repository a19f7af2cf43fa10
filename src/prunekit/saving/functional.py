"""A graph without writes: what it did in place is done by operators that return new values.

A saved graph may hold no operator that writes into its arguments. Every write is taken apart here:

    y = slice(x, 0, 2, 5)            y = slice(x, 0, 2, 5)
    add_(y, 1)              becomes  z = add(y, 1)
    return x                         x2 = slice_scatter(x, z, 0, 2, 5)
                                     return x2

What is written to a buffer of the network becomes an output of the graph, which the network puts there. What
is written to an argument of the user's is not written back to it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunekit.errors import ModelError
from prunekit.graph.captured_graph import Captured, InputKind, OutputKind, attributes_of, module_of
from prunekit.graph.conversion import FOLLOWS
from prunekit.graph.free_sizes import same_answer
from prunekit.graph.ops.moves import RESHAPED
from prunekit.saving.graph_calls import called_without_data, inputs_without_data
from prunekit.saving.graph_values import SIZES, batch_norm_training, bernoulli_like

aten = torch.ops.aten

# in place under another name than that of the operator without the underscore
_NAMED: dict[Any, Any] = {
    aten.bernoulli_.float: bernoulli_like,
    aten.normal_.default: aten.normal_functional.default,
}
# of uninitialised memory: zeros, since a file must not be able to read what was there before
_ZEROS: dict[Any, Any] = {
    aten.empty.memory_format: aten.zeros.default,
    aten.new_empty.default: aten.new_zeros.default,
    aten.empty_like.default: aten.zeros_like.default,
}
# random numbers of a given shape: of the shape of a tensor, which has been checked
_DRAWN: dict[Any, Any] = {
    aten.rand.default: aten.rand_like.default,
    aten.randn.default: aten.randn_like.default,
}
_SAME = {"alias", "contiguous", "to", "_to_copy", "lift_fresh", "dropout", "feature_dropout", "alpha_dropout"}
_SHAPED = {"reshape", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze"}
_SCATTERED: dict[str, Any] = {
    "slice": aten.slice_scatter.default,
    "select": aten.select_scatter.default,
    "diagonal": aten.diagonal_scatter.default,
}
_SPLIT = {"split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"}


@dataclass
class _Base:
    """A tensor with memory of its own: the node of its value now, and how often it was written to."""

    node: fx.Node
    kind: str = "made"
    name: str = ""
    version: int = 0


@dataclass(frozen=True)
class _Step:
    """A view of the tensor before it; of an operator that returns several, the one at `place`."""

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    place: int | None = None


@dataclass
class _Alias:
    """A tensor as its base and the views that lead to it, with the node of its value at a version."""

    base: _Base
    steps: tuple[_Step, ...]
    node: fx.Node
    version: int


def functional(graph: Captured, tensors: Mapping[str, Tensor], trained: Iterable[str]) -> Captured:
    """The graph that computes the same without writing anything.

    Args:
        graph: the graph.
        tensors: parameters and buffers by full name.
        trained: the names of the parameters among them.

    Raises:
        ModelError: where it writes into a parameter or a constant, or through a view that has no inverse.
    """
    return _Builder(graph, tensors, frozenset(trained)).built()


class _Builder:
    def __init__(self, graph: Captured, tensors: Mapping[str, Tensor], trained: frozenset[str]) -> None:
        self._old = graph
        self._tensors = tensors
        self._trained = trained
        self._graph = fx.Graph()
        self._inputs: list[tuple[InputKind, str]] = []
        self._constants: dict[str, Tensor] = {}
        self._meta: dict[fx.Node, Any] = {}
        self._buffers: list[_Base] = []
        self._plain: set[fx.Node] = set()  # what has no gradient in any case
        self._at: fx.Node | None = None

    def built(self) -> Captured:
        given = inputs_without_data(self._old, self._tensors)
        arguments = [
            self._placeholder(kind, name, value, self._old.constants[name] if kind == "constant" else None)
            for (kind, name), value in zip(self._old.inputs, given, strict=True)
        ]
        for (node, (kind, _)), made in zip(self._old.placeholders.items(), arguments, strict=True):
            if kind == "user":
                made.node.meta.update({key: node.meta[key] for key in ("val", "free") if key in node.meta})
        returned = self._now(self._run(self._old.graph, self._old.named, arguments, no_grad=False))
        written = [base for base in self._buffers if base.version]
        self._graph.output((*returned, *(base.node for base in written)))
        outputs: list[tuple[OutputKind, str]] = [("buffer", base.name) for base in written]
        return replace(
            self._old,
            graph=self._graph,
            named={},
            inputs=tuple(self._inputs),
            outputs=(*self._old.outputs, *outputs),
            constants=self._constants,
        )

    def _run(self, graph: fx.Graph, named: Mapping[str, Any], arguments: Sequence[Any], no_grad: bool) -> Any:
        """What a graph returns for these arguments, in aliases."""
        env: dict[fx.Node, Any] = {}
        given = iter(arguments)
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = next(given)
            elif node.op == "get_attr":
                env[node] = self._attribute(named[str(node.target)])
            elif node.op == "call_function":
                env[node] = self._call(node, env, no_grad)
        return fx.node.map_arg(graph.output_node().args[0], env.__getitem__)

    # ---- nodes -------------------------------------------------------------------------------------------

    def _placeholder(self, kind: InputKind, name: str, value: Any, constant: Tensor | None = None) -> _Alias:
        node = self._graph.placeholder(f"input_{len(self._inputs)}")
        self._inputs.append((kind, name))
        self._meta[node] = node.meta["val"] = value
        if kind in ("tensor", "constant") and name not in self._trained:
            self._plain.add(node)
        if constant is not None:
            self._constants[name] = constant
        base = _Base(node, "parameter" if name in self._trained else kind, name)
        if base.kind == "tensor":
            self._buffers.append(base)
        return _Alias(base, (), node, 0)

    def _attribute(self, value: Any) -> Any:
        """A tensor that the graph's module holds becomes a constant; a graph stays what it is."""
        if not isinstance(value, Tensor):
            return value
        last = self._graph.find_nodes(op="placeholder")[-1:]
        with self._graph.inserting_after(last[0]) if last else self._graph.inserting_before():
            return self._placeholder(
                "constant", f"attribute_{len(self._constants)}", value.detach().to("meta"), value
            )

    def _emit(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> fx.Node:
        node = self._graph.call_function(target, tuple(args), dict(kwargs))
        if self._at is not None:  # the place is for errors to name
            kept = ("nn_module_stack", FOLLOWS)
            node.meta.update({key: self._at.meta[key] for key in kept if key in self._at.meta})
        if self._plain.issuperset(node.all_input_nodes):
            self._plain.add(node)
        given = fx.node.map_arg((node.args, node.kwargs), self._meta.get)
        try:
            self._meta[node] = called_without_data(target, *given)
        except Exception:  # an operator that no file may name: it is refused or worked out later
            self._meta[node] = None
        return node

    def _call(self, node: fx.Node, env: Mapping[fx.Node, Any], no_grad: bool) -> Any:
        self._at, target = node, RESHAPED.get(node.target, node.target)
        if isinstance(target, torch._ops.HigherOrderOperator):
            return self._inlined(node, env, no_grad)
        name = _name(target)
        if name.startswith("_assert"):
            return None
        mapped: Any = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        args, kwargs = mapped
        if target is operator.getitem and isinstance(args[0], list | tuple):
            return args[0][args[1]]
        if name == "lift_fresh":
            return args[0]
        given = self._now(args), self._now(kwargs)
        if target in SIZES.values() or target is same_answer:
            return self._emit(target, *given)
        if target in _ZEROS or name == "empty_permuted":
            return self._zeros(target, *given)
        if target in _DRAWN:
            size = self._emit(aten.zeros.default, *given)
            return self._made(self._emit(_DRAWN[target], [size], {}))
        if name == "batch_norm" and args[5] and args[3] is not None:
            return self._batch_norm(args, given[0], node)
        if name == "instance_norm" and args[5] and args[3] is not None:
            raise ModelError(_refusal(node, "writes the running statistics of an instance norm"))
        schema = getattr(target, "_schema", None)
        if schema is not None and schema.is_mutable:
            return self._written(node, target, (args, kwargs), given)
        return self._computed(target, args, kwargs, given)

    def _computed(self, target: Any, args: Any, kwargs: Any, given: tuple[Any, Any]) -> Any:
        """The value of a call that writes nothing: a view of its first argument, or a tensor of its own."""
        made = self._emit(target, *given)
        value = self._meta[made]
        source = args[0] if args and isinstance(args[0], _Alias) else None
        if isinstance(value, tuple | list):
            items = [self._emit(operator.getitem, (made, place), {}) for place in range(len(value))]
            return [
                self._view(source, item, _Step(target, given[0][1:], given[1], place))
                for place, item in enumerate(items)
            ]
        return self._view(source, made, _Step(target, given[0][1:], given[1]))

    def _view(self, source: _Alias | None, node: fx.Node, step: _Step) -> _Alias:
        if source is None or not _share(self._meta[node], self._meta[source.node]):
            return self._made(node)
        return _Alias(source.base, (*source.steps, step), node, source.base.version)

    def _made(self, node: fx.Node) -> _Alias:
        return _Alias(_Base(node), (), node, 0)

    def _zeros(self, target: Any, args: Any, kwargs: Any) -> _Alias:
        kwargs = {key: value for key, value in kwargs.items() if key != "memory_format"}
        found = _ZEROS.get(target, aten.zeros.default)
        return self._made(self._emit(found, args[:1] if found is aten.zeros.default else args, kwargs))

    # ---- writes ------------------------------------------------------------------------------------------

    def _written(self, node: fx.Node, target: Any, arguments: tuple[Any, Any], given: tuple[Any, Any]) -> Any:
        args, kwargs = arguments
        written = [each.name for each in target._schema.arguments if each.is_out]
        if written:
            alias = kwargs.get(written[0]) if len(written) == 1 else None
            given = given[0], {key: value for key, value in given[1].items() if key not in written}
            found = _without_out(target)
        else:
            alias = args[0] if args else None
            found = _NAMED.get(target) or _out_of_place(target)
        if not isinstance(alias, _Alias) or found is None:
            raise ModelError(_refusal(node, f"calls {target}"))
        value = self._emit(found, *given)
        before, after = self._meta[alias.node], self._meta[value]
        if before is None or after is None:
            raise ModelError(_refusal(node, f"calls {target}"))
        if after.dtype != before.dtype:  # in place a tensor keeps its dtype
            value = self._emit(aten.to.dtype, (value, before.dtype), {})
        self._put(alias, value, node)
        return alias

    def _batch_norm(self, args: Any, given: Any, node: fx.Node) -> _Alias:
        x, weight, bias, mean, variance, _, momentum, eps = given[:8]
        made = self._emit(batch_norm_training, (x, weight, bias, mean, variance, momentum, eps), {})
        out, new_mean, new_variance = (self._emit(operator.getitem, (made, place), {}) for place in range(3))
        self._put(args[3], new_mean, node)
        self._put(args[4], new_variance, node)
        return self._made(out)

    def _put(self, alias: _Alias, value: fx.Node, node: fx.Node) -> None:
        """Make `value` what the tensor holds, and what its base holds with it."""
        base = alias.base
        if base.kind in ("parameter", "constant"):
            raise ModelError(_refusal(node, f"writes into a {base.kind}"))
        held = self._meta[alias.node], self._meta[base.node]
        alias.node = whole = value
        for number in reversed(range(len(alias.steps))):
            parent = _Alias(base, alias.steps[:number], base.node, -1)
            whole = self._inverse(alias.steps[number], self._now(parent), whole, node)
        base.node = whole
        # a write leaves the layout of memory as it is, and that says what later looks into it
        self._meta[value], self._meta[whole] = held
        base.version += 1
        alias.version = base.version

    def _inverse(self, step: _Step, parent: fx.Node, value: fx.Node, node: fx.Node) -> fx.Node:
        """The parent of a view, with other values where the view looks."""
        name, args, kwargs = _name(step.target), step.args, step.kwargs
        shape = list(self._meta[parent].shape)
        if name in _SAME or (name == "detach" and parent in self._plain):
            return value
        if name in _SHAPED:
            return self._emit(aten.reshape.default, (value, self._sizes(parent)), {})
        if name in ("transpose", "swapaxes", "swapdims", "t", "numpy_T", "mT", "adjoint"):
            return self._emit(step.target, (value, *args), kwargs)
        if name == "permute":
            axes = [axis % len(shape) for axis in args[0]]
            return self._emit(
                aten.permute.default, (value, [axes.index(axis) for axis in range(len(axes))]), {}
            )
        if name in _SCATTERED:
            return self._emit(_SCATTERED[name], (parent, value, *args), kwargs)
        if step.target is aten.narrow.default:
            piece = dict(zip(("dim", "start", "length"), args, strict=False)) | kwargs
            size = shape[piece["dim"]]
            if any(isinstance(each, fx.Node) for each in piece.values()):
                raise ModelError(_refusal(node, "writes through a piece whose place depends on a free size"))
            start = piece["start"] + (size if piece["start"] < 0 else 0)
            place = (piece["dim"], start, start + piece["length"])
            return self._emit(aten.slice_scatter.default, (parent, value, *place), {})
        if name == "unbind" and step.place is not None:
            dim = args[0] if args else kwargs.get("dim", 0)
            return self._emit(aten.select_scatter.default, (parent, value, dim, step.place), {})
        if name in _SPLIT and step.place is not None:
            if any(isinstance(each, fx.Node) for each in pytree.tree_leaves((step.args, step.kwargs))):
                raise ModelError(_refusal(node, "writes through a piece whose place depends on a free size"))
            return self._put_back(step, parent, value)
        raise ModelError(_refusal(node, f"writes through a view by {name!r}"))

    def _put_back(self, step: _Step, parent: fx.Node, value: fx.Node) -> fx.Node:
        """One of several pieces, in its place: those before it say where it begins."""
        assert step.place is not None
        dim = step.args[1] if len(step.args) > 1 else step.kwargs.get("dim", 0)
        pieces = called_without_data(step.target, (self._meta[parent], *step.args), step.kwargs)
        start = sum(piece.shape[dim] for piece in pieces[: step.place])
        end = start + pieces[step.place].shape[dim]
        return self._emit(aten.slice_scatter.default, (parent, value, dim, start, end), {})

    def _sizes(self, node: fx.Node) -> list[Any]:
        """The sizes of a tensor: nodes that ask it, where axes of the inputs are free."""
        shape = list(self._meta[node].shape)
        if not any(self._old.free):
            return shape
        return [self._emit(aten.sym_size.int, (node, axis), {}) for axis in range(len(shape))]

    # ---- values ------------------------------------------------------------------------------------------

    def _now(self, value: Any) -> Any:
        """Nested arguments with the nodes of their values as they are now."""
        return fx.node.map_aggregate(value, self._node_of)

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, _Alias):
            return value
        if value.version != value.base.version:
            value.node = self._looked_at(value.base.node, value.steps)
            value.version = value.base.version
        return value.node

    def _looked_at(self, node: fx.Node, steps: Sequence[_Step]) -> fx.Node:
        for step in steps:
            node = self._emit(step.target, (node, *step.args), step.kwargs)
            if step.place is not None:
                node = self._emit(operator.getitem, (node, step.place), {})
        return node

    # ---- graphs that are called --------------------------------------------------------------------------

    def _inlined(self, node: fx.Node, env: Mapping[fx.Node, Any], no_grad: bool) -> Any:
        """The outputs of a graph that runs in another mode, which is written out here."""
        name = str(node.target)
        if name == "wrap_with_set_grad_enabled":
            enabled, inner, *given = node.args
            if enabled and no_grad:
                raise ModelError(_refusal(node, "computes gradients inside of a part that does without"))
            without = not enabled
        elif name == "wrap_with_autocast":
            _, _, enabled, _, inner, *given = node.args
            if enabled:
                raise ModelError(_refusal(node, "has a part under autocast"))
            without = no_grad
        else:
            raise ModelError(_refusal(node, f"calls {name}"))
        module: Any = env[inner] if isinstance(inner, fx.Node) else inner
        arguments = fx.node.map_arg(given, env.__getitem__)
        if without and not no_grad:
            arguments = [self._detached(each) for each in arguments]
        return self._run(module.graph, attributes_of(module.graph, module), arguments, without)

    def _detached(self, value: Any) -> Any:
        """Without a gradient; what has none in any case stays what it is, so that it can be written to."""
        if not isinstance(value, _Alias) or value.base.kind in ("tensor", "constant"):
            return value
        return self._made(self._emit(aten.detach.default, (self._now(value),), {}))


def _out_of_place(target: Any) -> Any:
    """The overload of the same name without the underscore, which returns what this one writes."""
    packet = target.overloadpacket.__name__
    plain = packet.replace("__i", "__", 1) if packet.startswith("__i") else packet.removesuffix("_")
    return None if plain == packet else getattr(getattr(aten, plain, None), target._overloadname, None)


def _without_out(target: Any) -> Any:
    """The overload with the same arguments but for `out`, which returns what this one writes."""

    def signature(overload: Any) -> list[tuple[str, str]]:
        return [(each.name, str(each.type)) for each in overload._schema.arguments if not each.is_out]

    packet = target.overloadpacket
    others = [getattr(packet, name) for name in packet.overloads()]
    same = [each for each in others if each is not target and signature(each) == signature(target)]
    return next((each for each in same if not each._schema.is_mutable), None)


def _share(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _name(target: Any) -> str:
    return target.overloadpacket.__name__ if isinstance(target, torch._ops.OpOverload) else ""


def _refusal(node: fx.Node, what: str) -> str:
    place = module_of(node)
    return f"the network cannot be saved as a graph: it {what}" + (f" in {place!r}" if place else "")
