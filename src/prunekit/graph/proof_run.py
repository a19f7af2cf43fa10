"""Runs of a network for a proof: on a copy in double precision, made when it is needed and used up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.utils import _pytree as pytree

from prunekit.errors import ModelError
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.copies import copy_of
from prunekit.graph.coupling_graph import KeepMasks
from prunekit.graph.other_inputs import Arguments
from prunekit.graph.reference_run import Interpreter, exact, largest, layers_in
from prunekit.modes import Holdings, Snapshot

Derivatives = tuple[tuple[object, ...], ...]
"""See `derivatives_of`."""


@dataclass(frozen=True)
class ProofRun:
    """What a network gave.

    Attributes:
        outputs: all its tensors of real numbers.
        magnitude: the largest number that a layer put out, if that was asked for: rounding grows with it.
        derivatives: by what autograd would differentiate the outputs, if that was asked for.
    """

    outputs: list[Tensor]
    magnitude: float = 0.0
    derivatives: Derivatives = ()

    def same_as(self, other: ProofRun) -> bool:
        """Whether another run gave the same, bit for bit, by the same operations.

        Then its gradients are the same as well: they follow from the operations and from what these computed.
        """
        if not self.derivatives or self.derivatives != other.derivatives:
            return False
        if len(self.outputs) != len(other.outputs):
            return False
        return all(map(torch.equal, self.outputs, other.outputs))


class GradientSink(Protocol):
    """What gradients are handed to, one after the other.

    Attributes:
        finite: whether all so far were numbers.
    """

    finite: bool

    def take(self, name: str, gradient: Tensor) -> None:
        """The whole gradient of a parameter, which may be kept."""


Sink = TypeVar("Sink", bound=GradientSink)
Entered = Callable[[], AbstractContextManager[Any]]


class ProofCopy:
    """A copy of a network that is run to be compared, made for its first run and again after `release`.

    A run with gradients hands each on as soon as it is there, and uses the copy up unless it is held: neither
    the gradient nor the parameter is there any longer. So what a run takes at its peak is the copy and what
    its layers put out, without a second set of numbers of the parameters' size.

    Args:
        make: gives the copy, which becomes its own, see `exact_copy`.
        dtype: of the copy; None for the network's own, and then for what it calls, too.
        what: it is called where it fails, such as "masked".
        refused: what is raised where it cannot be run.
        calls: how often it is run in a row, each time: more than once if a call changes what the next gives.
        keeping: what stays of each node of its graphs, where statistics run over what stays.
        held: whether the copy stays for all runs: it is not made anew then, and takes memory between them.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        dtype: torch.dtype | None,
        what: str,
        refused: type[ModelError],
        calls: int = 1,
        keeping: KeepMasks | None = None,
        *,
        held: bool = False,
    ) -> None:
        self._make = make
        self._made: nn.Module | None = None
        self._layers: int | None = None
        self._before: _State | None = None
        self.dtype = dtype
        self.calls = calls
        self.held = held
        self._what, self._refused = what, refused
        self._keeping = keeping

    @property
    def model(self) -> nn.Module:
        """The copy."""
        if self._made is None:
            self._made = self._make()
            self._layers = layers_in(self._made)
        return self._made

    @property
    def layers(self) -> int:
        """How many of its modules have parameters, which is known once a copy was made."""
        return layers_in(self.model) if self._layers is None else self._layers

    def release(self) -> None:
        """Let the copy go."""
        self._made = self._before = None

    def run(
        self,
        call: Arguments,
        *,
        training: bool = False,
        draws: Entered = nullcontext,
        magnitudes: bool = False,
        derivatives: bool = False,
        last: bool = False,
    ) -> ProofRun:
        """What it gives.

        Args:
            call: its arguments.
            training: the mode of all its modules.
            draws: gives what is entered while it computes.
            magnitudes: whether these are asked for.
            derivatives: whether these are.
            last: whether the copy is let go afterwards, if it is not held.

        Raises:
            ModelError: of the class for it, where it cannot be run or gives no tensor of real numbers.
        """
        with self.prepared(training=training, last=last):
            outputs, magnitude = self._outputs(call, draws, magnitudes)
            found = derivatives_of(outputs, self.model) if derivatives else ()
        return ProofRun([each.detach() for each in outputs], magnitude, found)

    def run_with_gradients(
        self,
        call: Arguments,
        begin: Callable[[], Sink],
        *,
        training: bool = False,
        draws: Entered = nullcontext,
        magnitudes: bool = False,
    ) -> tuple[ProofRun, Sink | None, str]:
        """What it gives, and the gradients of its parameters for a random weighting of the outputs.

        Where a gradient comes in parts, as from layers that are computed anew for it, or is no number, which
        a parameter that is used up would be, too, or where there are none, all of it is done again with
        nothing let go on the way.

        Args:
            call: as of `run`.
            begin: gives what gradients are handed to.
            training: as of `run`.
            draws: as of `run`.
            magnitudes: as of `run`.

        Returns:
            What it gives, what took the gradients, and why there are none, if there are none.
        """
        for streamed in (True, False):
            sink, why, whole = begin(), "", True
            with self.prepared(training=training, last=True):
                parameters = dict(self.model.named_parameters())
                outputs, magnitude = self._outputs(call, draws, magnitudes)
                found = ProofRun([each.detach() for each in outputs], magnitude)
                try:
                    whole = _backward(parameters, outputs, sink, streamed=streamed, used_up=not self.held)
                except RuntimeError as error:  # as where it writes over what they need
                    why = str(error)
                del outputs, parameters
            if whole and sink.finite and not why:
                break
        return found, None if why else sink, why

    @contextmanager
    def prepared(self, *, training: bool, last: bool = False) -> Iterator[None]:
        """One mode for all modules and the precision of the proof.

        Args:
            training: the mode.
            last: whether the copy is let go afterwards, if it is not held; else what a run writes to it is
                put back.
        """
        model, last = self.model, last and not self.held
        if self._before is None and not last:
            self._before = _State(model)
        exactly = nullcontext() if self.dtype is None else exact()
        try:
            with exactly, torch.enable_grad():
                for module in model.modules():
                    module.training = training
                yield
        finally:
            if last:
                self.release()
            elif self._before is not None:
                self._before.put_back()

    def converted(self, call: Arguments) -> Arguments:
        """The arguments in the precision of the proof, where the network is, if it is at one place."""
        parameter = next(self.model.parameters(), None)
        places = {each.device for each in self.model.parameters()}

        def converted(value: Tensor) -> Tensor:
            value = value.detach().clone()  # what was made in inference mode is no input of a derivative
            if len(places) == 1:
                value = value.to(next(iter(places)))
            if not value.is_floating_point():
                return value
            own = value.dtype if parameter is None else parameter.dtype
            return value.to(self.dtype or own)

        return pytree.tree_map_only(Tensor, converted, call)

    def _outputs(self, call: Arguments, draws: Entered, magnitudes: bool) -> tuple[list[Tensor], float]:
        model = self.model
        args, kwargs = self.converted(call)
        noted: list[float] = []
        watched = _magnitudes(model, noted) if magnitudes else nullcontext()
        with watched, draws():
            try:
                if isinstance(model, GraphModel):
                    output = model.run(args, kwargs, self._interpreted)
                else:
                    output = model(*args, **kwargs)
                    if self.calls > 1:
                        output = [output, *(model(*args, **kwargs) for _ in range(self.calls - 1))]
            except Exception as error:  # whatever the user's forward raises
                raise self._refused(
                    f"the {self._what} network failed on the inputs: {type(error).__name__}: {error}"
                ) from error
        found = tensors_in(output)
        if not found:
            raise self._refused(
                f"the {self._what} network gives {type(output).__name__} in place of a tensor of real "
                "numbers, so nothing can be proven of it"
            )
        return found, max(noted, default=0.0)

    def _interpreted(self, number: int, graph: Any, given: list[Any]) -> Any:
        keeping = None if self._keeping is None else partial(self._keeping, number)
        return Interpreter(graph, keeping).run(*given)


class _State:
    """What a copy held before its runs, its buffers too, to be put back after each: it is looked at once."""

    def __init__(self, model: nn.Module) -> None:
        self._buffers, self._holdings = Snapshot(model, parameters=False), Holdings(model)

    def put_back(self) -> None:
        """Undo what a run wrote to the network, but for the mode of its modules, which each run sets."""
        self._holdings.put_back()
        self._buffers.restore()


def exact_copy(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy in a precision all of whose parameters have gradients; none in the network's own is made."""
    instead: dict[int, Tensor] = {}
    for parameter in model.parameters() if dtype is not None else ():
        if type(parameter) is nn.Parameter and parameter.layout == torch.strided:
            wide = parameter.detach().to(wider(parameter.dtype, dtype), copy=True)
            instead[id(parameter)] = nn.Parameter(wide, requires_grad=wide.is_floating_point())
    return with_gradients(in_precision(copy_of(model, instead), dtype))


def in_precision(model: nn.Module, dtype: torch.dtype | None, *, own: bool = True) -> nn.Module:
    """The network itself with its numbers in a precision, one parameter after the other.

    Args:
        model: the network, which is changed.
        dtype: of its real numbers; None for those that it has.
        own: whether its parameters are its own; else those become new ones in any case.
    """
    if not own:
        for parameter in model.parameters():
            parameter.data = parameter.detach().to(wider(parameter.dtype, dtype), copy=True)
    # as `model.to` does it, which would drop the imaginary parts of complex numbers
    if dtype is not None:
        model._apply(lambda each: each.to(wider(each.dtype, dtype)))  # type: ignore[no-untyped-call]
    return model


def with_gradients(model: nn.Module) -> nn.Module:
    """The network itself, whose real parameters have gradients, none of which is there yet."""
    for parameter in model.parameters():
        parameter.grad = None
        parameter.requires_grad_(parameter.is_floating_point())
    return model


def wider(own: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """The type of numbers of a type in a precision: real and complex ones are changed, others are not."""
    if dtype is None or not (own.is_floating_point or own.is_complex):
        return own
    return dtype.to_complex() if own.is_complex else dtype


def _backward(
    parameters: Mapping[str, nn.Parameter],
    outputs: list[Tensor],
    sink: GradientSink,
    *,
    streamed: bool,
    used_up: bool,
) -> bool:
    """Hand gradients to a sink, each when it is there if `streamed`; whether each came as a whole.

    With `used_up` a parameter is let go with its gradient.

    Raises:
        RuntimeError: where there are none.
    """
    generator = torch.Generator().manual_seed(0)  # not the user's
    sums = []
    for output in outputs:
        weighting = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        if output.requires_grad:
            sums.append((output * weighting).sum())
    seen: set[str] = set()
    whole = True

    def arrived(parameter: Tensor, name: str) -> None:
        nonlocal whole
        whole = whole and name not in seen
        seen.add(name)
        with torch._C.DisableTorchFunction():  # what is done here is no part of the network
            gradient, parameter.grad = parameter.grad, None
            assert gradient is not None
            sink.take(name, gradient.to_dense() if gradient.is_sparse else gradient)
        if streamed and used_up:  # whoever reads it once more gets what is no number, and that is seen
            parameter.data = parameter.new_full((), torch.nan).expand(parameter.shape)

    held = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
    for parameter in held.values():
        parameter.grad = None
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(arrived, name=name))  # type: ignore[no-untyped-call]
        for name, parameter in held.items()
        if streamed
    ]
    try:
        if sums:
            sum((each.to(sums[0]) for each in sums[1:]), sums[0]).backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    with torch.no_grad():
        for name, parameter in held.items():
            if parameter.grad is not None:
                arrived(parameter, name)
    return whole


def derivatives_of(outputs: Sequence[Tensor], model: nn.Module) -> Derivatives:
    """The operations behind outputs, as autograd keeps them: names, what each reads, and parameters by name.

    For outputs [relu(w x)] of a parameter w:

        ("ReluBackward0", ((1, 0),)), ("MvBackward0", ((2, 0), None)), ("AccumulateGrad", (), "w")

    where (1, 0) is output 0 of operation 1. None are given where one is written in Python, as a checkpoint
    is: what it will do does not show.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    places: dict[Any, int] = {}
    waiting = [output.grad_fn for output in reversed(outputs) if output.grad_fn is not None]
    while waiting:
        operation = waiting.pop()
        if isinstance(operation, BackwardCFunction):
            return ()
        if operation not in places:
            places[operation] = len(places)
            waiting += [each for each, _ in reversed(operation.next_functions) if each is not None]
    return tuple(
        (
            operation.name(),
            tuple(None if each is None else (places[each], at) for each, at in operation.next_functions),
            *([names.get(id(operation.variable))] if hasattr(operation, "variable") else []),
        )
        for operation in places
    )


@contextmanager
def _magnitudes(model: nn.Module, found: list[float]) -> Iterator[None]:
    """Take down the largest magnitude that each layer puts out while the model runs."""

    def note(module: nn.Module, given: Any, output: Any) -> None:
        with torch._C.DisableTorchFunction():  # it is no part of the network
            if isinstance(output, Tensor) and output.is_floating_point():
                found.append(largest(output))

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_hook(note) for module in leaves]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tensors_in(output: Any, *, real: bool = True) -> list[Tensor]:
    """All tensors in what a network gives, however nested; those of real numbers only, unless told not."""
    if isinstance(output, Tensor):
        return [output] if output.is_floating_point() or not real else []
    if isinstance(output, Mapping):
        output = list(output.values())
    elif is_dataclass(output) and not isinstance(output, type):
        output = [getattr(output, field.name) for field in fields(output)]
    if isinstance(output, (list, tuple)):
        return [tensor for item in output for tensor in tensors_in(item, real=real)]
    return []
