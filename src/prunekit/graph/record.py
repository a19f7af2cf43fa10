"""A network's graph, recorded from the operators that it calls.

The network runs once on tensors without data, so that nothing is computed, no buffer changes, and whatever
asks for a value fails, unless values are computed along. Where it writes to its modules, it runs once more on
what it has left there. PyTorch's inference mode lets the operators through as the network calls them, before
they fall into others, so that the graph is of the kind that `torch.export` gives, in a tenth of its time.
Wherever a recording might not be the network, it is refused, and `torch.export` decides.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as hooks
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from prunekit.graph.cached_path import without_cache
from prunekit.graph.captured_graph import Captured, InputKind
from prunekit.graph.places import CodePlace, line_at, place_here
from prunekit.graph.result_shapes import shapes
from prunekit.graph.size_run import SizeMode, SizeUses, plain, remembering
from prunekit.graph.values import Values
from prunekit.modes import untouched


class FakeTensor(Tensor):
    """A tensor of which there are shape, type and device, and no data."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    recorder: Callable[[], Any]

    @staticmethod
    def __new__(cls, meta: Tensor, device: torch.device) -> FakeTensor:
        """One for a tensor on the meta device."""
        # a view of a parameter, which is no inference tensor, cannot be one
        with torch.inference_mode(False):
            made: FakeTensor = Tensor._make_wrapper_subclass(
                cls,
                meta.size(),
                strides=meta.stride(),
                storage_offset=meta.storage_offset(),
                dtype=meta.dtype,
                device=device,
            )
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        """Shape and type: there are no entries to show."""
        return f"FakeTensor({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """The values, where they are computed along."""
        return self._real("tolist", Tensor.tolist)

    def numpy(self, *, force: bool = False) -> Any:
        """Likewise."""
        return self._real("numpy", Tensor.numpy)

    def __array__(self, dtype: Any = None) -> Any:
        """Likewise."""
        return self._real("numpy", Tensor.numpy).astype(dtype or None)

    def _real(self, how: str, to: Callable[[Tensor], Any]) -> Any:
        return self.recorder().asked(how, self, to)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Nothing can be computed outside of a recording."""
        raise RuntimeError(f"{func} of a tensor without data")


def meta_of(tensor: Tensor) -> Tensor:
    """A tensor of the same shape, layout and type on the meta device."""
    with torch.inference_mode(False):
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


_PLAIN = (bool, int, float, complex, str, type(None))
_REFUSED = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view)


class NotRecordedError(Exception):
    """The network cannot be recorded; why not.

    Attributes:
        operators: how many it called before.
        so_far: the graph of these, without outputs.
        attempted: the operator that it called then, if it came to one, and its arguments.
    """

    operators: int = 0
    so_far: Captured | None = None
    attempted: tuple[Any, Any] | None = None


class MisfitError(NotRecordedError):
    """A linear layer is given another number of features than it reads."""

    def __init__(self, given: int, read: int) -> None:
        super().__init__(f"a linear layer that reads {read} features is given {given}")
        self.given, self.read = given, read


def recorded(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Mapping[str, str],
    *,
    sizes: bool = False,
    values: bool = False,
) -> Captured:
    """The graph of a network as it is now; the network is left as it was.

    Where a call changes what the next one gives it is that of the first, and says so (`Captured.by_calls`).

    Args:
        model: the network.
        args: of its forward.
        kwargs: of its forward.
        names: the first name of each parameter and buffer.
        sizes: whether to find out what its sizes are computed from, where its code lets that be done.
        values: whether a value that is asked for is computed, with all that it comes from.

    Raises:
        NotRecordedError: where a value is asked for, or something is done that a graph might not show.
    """
    with untouched(model) as before:
        uses = SizeUses() if sizes else None
        while True:
            try:
                found = _run(model, args, kwargs, names, uses, values=values)
                break
            except NotRecordedError:
                if uses is None:
                    raise
                before.put_back()
                # code may refuse numbers that are not plain: those that it looks things up by, or all
                uses = SizeUses(keys=uses.keys | uses.hashed) if uses.hashed else None
        keeper = before.changed
        if keeper and not _repeats(found, partial(_run, model, args, kwargs, names, values=values)):
            found = replace(found, by_calls=(f"the forward of {keeper} changes what its next call gives",))
    return found


def _repeats(found: Captured, run: Callable[[], Captured]) -> bool:
    """Whether the next call is recorded as the first one was."""
    try:
        return found.same_as(run())
    except NotRecordedError:
        return False


def _run(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: Mapping[str, str],
    uses: SizeUses | None = None,
    *,
    values: bool = False,
) -> Captured:
    recorder = _Recorder(model, names, Values() if values else None)
    flat, takes = pytree.tree_flatten((args, kwargs))
    given = [recorder.user(value, number) for number, value in enumerate(flat)]
    own_args, own_kwargs = pytree.tree_unflatten(given, takes)
    try:
        with recorder.calls(), torch.inference_mode(), torch.enable_grad(), recorder, ExitStack() as stack:
            stack.enter_context(without_cache(model))
            if uses is not None:
                stack.enter_context(remembering(model, uses))
                stack.enter_context(SizeMode(recorder.graph, recorder.node_of, uses))
            output = model(*own_args, **own_kwargs)
        results, gives = pytree.tree_flatten(output)
        recorder.graph.output(tuple(recorder.output(value) for value in results))
    except NotRecordedError as failure:
        recorder.describe(failure, takes)
        raise
    except Exception as error:  # whatever the user's forward raises on tensors without data
        raised = NotRecordedError(f"{type(error).__name__}: {error}")
        recorder.describe(raised, takes)
        raise raised from error
    found = recorder.captured(takes, gives)
    by_data, by_state = recorder.deciding()
    return replace(
        found,
        outputs=tuple(("user", "") for _ in results),
        uses=uses or SizeUses(),
        by_data=by_data,
        by_state=by_state,
    )


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Takes every operator that is called down as a node."""

    def __init__(self, model: nn.Module, names: Mapping[str, str], values: Values | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.graph = fx.Graph()
        self._values = values
        self._asked: list[tuple[CodePlace | None, dict[fx.Node, InputKind]]] = []
        self._kinds: dict[fx.Node, InputKind] = {}
        self.inputs: list[tuple[InputKind, str]] = []
        self.constants: dict[str, Tensor] = {}
        # tensors are kept with what is known of them: an object that is gone may pass on its identity
        self._known: dict[int, tuple[Tensor, fx.Node]] = {}
        self._last: fx.Node | None = None
        self._attempted: tuple[Any, Any] | None = None
        self._modules = {id(module): name for name, module in reversed(list(model.named_modules()))}
        self._stack: list[dict[str, tuple[str, str]]] = [{}]
        self._count: dict[str, int] = {}
        every = [*model.named_parameters(), *model.named_buffers()]
        for name, tensor in every:
            if type(tensor) not in (Tensor, nn.Parameter):
                raise NotRecordedError(f"{name} is a {type(tensor).__name__}")
        self._storages = {tensor.untyped_storage().data_ptr() for _, tensor in every if tensor.numel()}
        for name, tensor in every:
            node = self._placeholder(f"p_{name.replace('.', '_')}", "tensor", names[name], meta_of(tensor))
            self._given(node, tensor)
            self._known[id(tensor)] = tensor, node

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be left out by the compiler its modules would be loaded, which takes a second."""
        return False

    def captured(self, takes: pytree.TreeSpec, gives: pytree.TreeSpec) -> Captured:
        """The graph, as far as it has come."""
        return Captured(self.graph, {}, tuple(self.inputs), (), self.constants, takes, gives)

    def describe(self, failure: NotRecordedError, takes: pytree.TreeSpec) -> None:
        """Let a failure know how far it has come."""
        failure.operators, failure.attempted = self.operators, self._attempted
        failure.so_far = self.captured(takes, takes)

    def node_of(self, tensor: Tensor) -> fx.Node | None:
        """The node that gave a tensor; None for one that was never seen."""
        return self._known[id(tensor)][1] if id(tensor) in self._known else None

    @property
    def operators(self) -> int:
        """How many were called."""
        return sum(node.op == "call_function" for node in self.graph.nodes)

    def user(self, value: Any, number: int) -> Any:
        """What the network is called with in the place of a value of the user's."""
        if not isinstance(value, Tensor):
            self._placeholder(f"input_{number}", "user", "", value)
            return value
        if type(value) is not Tensor or value.layout != torch.strided:
            raise NotRecordedError(f"an input is a {type(value).__name__} of the layout {value.layout}")
        node = self._placeholder(f"input_{number}", "user", "", meta_of(value))
        self._given(node, value)
        return self._made(node, value.device)

    def output(self, value: Any) -> Any:
        """The node of an output; a plain value as it is."""
        if isinstance(value, Tensor):
            return self._found(value)
        if isinstance(value, _PLAIN):
            return plain(value)
        raise NotRecordedError(f"an output is a {type(value).__name__}")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Take an operator down, and give tensors of the shapes that it would give."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.detach_.default:  # of what torch.tensor() makes
            return self._detached(args[0])
        if _is_as_it_was(func, args, kwargs):
            return args[0]
        self._attempted = func, args
        self._check(func, args)
        if func is torch.ops.aten.linear.default and args[0].shape[-1:] != args[1].shape[-1:]:
            raise MisfitError(args[0].shape[-1], args[1].shape[-1])
        own_args, own_kwargs = _mapped((args, kwargs), self._found)
        result = self._result(func, args, kwargs)
        if not isinstance(result, (Tensor, tuple, list)):
            return result
        name = func.overloadpacket.__name__
        node = self.graph.create_node("call_function", func, own_args, own_kwargs, name)
        self._describe(node, result)
        if self._values is not None:
            self._values.called(node)
        if func._schema.is_mutable:
            self._known[id(args[0])] = args[0], node
            return args[0]
        device = self._device(args, kwargs)
        if isinstance(result, Tensor):
            if not torch.is_grad_enabled() and result.is_floating_point():
                return self._detached(self._made(node, device))
            return self._made(node, device)
        if isinstance(result, (list, tuple)) and torch.is_grad_enabled():
            return type(result)(self._item(node, number, each, device) for number, each in enumerate(result))
        raise NotRecordedError(f"{func} gives a {type(result).__name__}")

    def asked(self, how: str, tensor: Tensor, to: Callable[[Tensor], Any]) -> Any:
        """The values of a tensor, in another form."""
        if self._values is None:
            raise RuntimeError(f"{how} of a tensor without data")
        node = self._found(tensor)
        self._note([node])
        with _disable_current_modes():
            return to(self._values.of(node).clone())

    def deciding(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The lines that ask for values which come from the inputs, and from the network's state."""
        found: dict[str, list[str]] = {"user": [], "tensor": []}
        for place, sources in self._asked:
            for node, kind in sources.items():
                if kind == "tensor" and self._values is not None and self._values.is_written_to(node):
                    raise NotRecordedError(f"a value is asked for that the network writes{line_at(place)}")
                if kind in found:
                    found[kind].append(line_at(place).removeprefix(", "))
        by_data, by_state = (tuple(dict.fromkeys(each)) for each in found.values())
        return by_data, by_state

    def _note(self, nodes: list[fx.Node]) -> None:
        """Remember that values are asked for here, and what they come from."""
        assert self._values is not None
        self._asked.append((place_here(_run.__code__), self._values.sources(nodes, self._kinds)))

    def _result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives: tensors without data, or a value."""
        if self._values is not None and _gives_values(func, args):
            return self._computed(func, args, kwargs)
        try:
            return shapes(func, *_mapped((args, kwargs), lambda each: self._found(each).meta["val"]))
        except (NotImplementedError, RuntimeError):
            if self._values is None or func._schema.is_mutable:
                raise
            return self._computed(func, args, kwargs)  # some operators look at values, as of lengths

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives whose result, or its shape, depends on values; tensors without data."""
        assert self._values is not None
        nodes: list[fx.Node] = []
        _mapped((args, kwargs), lambda each: nodes.append(self._found(each)))
        self._note(nodes)
        own_args, own_kwargs = self._values.of(_mapped((args, kwargs), self._found))
        with _disable_current_modes(), torch.no_grad():
            found = func(*own_args, **own_kwargs)
        return pytree.tree_map_only(Tensor, meta_of, found)

    def _given(self, node: fx.Node, value: Any) -> None:
        if self._values is not None:
            self._values.given(node, value)

    @contextmanager
    def calls(self) -> Iterator[None]:
        """Know the modules whose forward is under way."""
        handles = [
            hooks.register_module_forward_pre_hook(self._enter),
            hooks.register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, _: Any) -> None:
        name = self._modules.get(id(module))
        if name is None:
            return
        self._count[name] = self._count.get(name, -1) + 1
        kind = type(module)
        entry = name, f"{kind.__module__}.{kind.__qualname__}"
        self._stack.append({**self._stack[-1], f"{name}@{self._count[name]}": entry})

    def _leave(self, module: nn.Module, *_: Any) -> None:
        if id(module) in self._modules and len(self._stack) > 1:
            self._stack.pop()

    def _check(self, func: Any, args: Any) -> None:
        if not isinstance(func, torch._ops.OpOverload):
            raise NotRecordedError(f"{func} is no operator")
        refused = (torch.Tag.inplace_view,) if self._values is not None else _REFUSED
        if any(tag in func.tags for tag in refused) and not _is_indexing_by_numbers(func, args):
            raise NotRecordedError(f"{func} depends on values, or changes a shape in place")
        if func._schema.is_mutable and not func.overloadpacket.__name__.endswith("_"):
            raise NotRecordedError(f"{func} writes to what it is given")

    def _found(self, tensor: Tensor) -> fx.Node:
        """The node that gave a tensor; one that was never seen is a constant."""
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        if type(tensor) is not Tensor or tensor.layout != torch.strided:
            raise NotRecordedError(f"a {type(tensor).__name__} comes from elsewhere")
        if tensor.numel() and tensor.untyped_storage().data_ptr() in self._storages:
            raise NotRecordedError("a parameter's or buffer's data are read behind its back")
        name = f"constant_{len(self.constants)}"
        self.constants[name] = tensor
        node = self._placeholder(name, "constant", name, meta_of(tensor))
        self._given(node, tensor)
        self._known[id(tensor)] = tensor, node
        return node

    def _placeholder(self, name: str, kind: InputKind, stands_for: str, value: Any) -> fx.Node:
        if self._last is None or self._last.next.op == "root":
            node = self.graph.placeholder(name)
        else:  # a constant that is met between the operators
            with self.graph.inserting_after(self._last):
                node = self.graph.placeholder(name)
        node.meta["val"] = value
        self._kinds[node] = kind
        self.inputs.append((kind, stands_for))
        self._last = node
        return node

    def _detached(self, tensor: Tensor) -> Tensor:
        before = self._found(tensor)
        node = self.graph.call_function(torch.ops.aten.detach.default, (before,))
        self._describe(node, before.meta["val"])
        if self._values is not None:
            self._values.called(node)
        self._known[id(tensor)] = tensor, node
        return tensor

    def _made(self, node: fx.Node, device: torch.device) -> FakeTensor:
        made = FakeTensor(node.meta["val"], device)
        made.recorder = weakref.ref(self)
        self._known[id(made)] = made, node
        return made

    def _item(self, node: fx.Node, number: int, value: Any, device: torch.device) -> Any:
        if not isinstance(value, Tensor):
            return value
        item = self.graph.call_function(operator.getitem, (node, number))
        self._describe(item, value)
        if self._values is not None:
            self._values.called(item)
        return self._made(item, device)

    def _describe(self, node: fx.Node, value: Any) -> None:
        node.meta["val"] = value
        node.meta["nn_module_stack"] = self._stack[-1]
        node.meta["place"] = place_here(_run.__code__)

    def _device(self, args: Any, kwargs: Mapping[str, Any]) -> torch.device:
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        tensors: list[Tensor] = []
        _mapped((args, kwargs), tensors.append)
        placed = [each for each in tensors if each.dim()] or tensors
        return placed[0].device if placed else torch.get_default_device()


def _mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Arguments of an operator with something else in the place of each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)([_mapped(each, change) for each in value])
    if isinstance(value, dict):
        return {name: _mapped(each, change) for name, each in value.items()}
    return value


def _is_as_it_was(func: torch._ops.OpOverload, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a parameter is asked for in the type and at the place that it has, as by `layer.to(dtype)`.

    It is itself then, and the module that asks gives it its own data back.
    """
    if func.overloadpacket is not torch.ops.aten.to or not isinstance(args[0], nn.Parameter):
        return False
    asked = [each for each in (*args[1:], *kwargs.values()) if isinstance(each, (torch.dtype, torch.device))]
    return all(each in (args[0].dtype, args[0].device) for each in asked) and not kwargs.get("copy")


_OF_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


def _gives_values(func: torch._ops.OpOverload, args: Any) -> bool:
    """Whether what an operator gives, or its shape, depends on the values of what it reads."""
    if func.overloadpacket.__name__ in ("is_nonzero", "nonzero_numpy"):
        return True
    return any(tag in func.tags for tag in _OF_VALUES) and not _is_indexing_by_numbers(func, args)


def _is_indexing_by_numbers(func: torch._ops.OpOverload, args: Any) -> bool:
    """Whether what comes out has the size of the index; by a mask its size would depend on the mask."""
    by = [each for each in pytree.tree_leaves(args[1:2]) if isinstance(each, Tensor)]
    return func is torch.ops.aten.index.Tensor and all(
        each.dtype not in (torch.bool, torch.uint8) for each in by
    )
