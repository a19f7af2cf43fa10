"""Networks whose zeros are not multiplied with, layer by layer where that is measured to be faster."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from prunekit.batches import Inputs
from prunekit.errors import ModelError, explaining
from prunekit.graph import Deviation, VerificationError, same_function
from prunekit.graph.copies import copy_of
from prunekit.graph.reference_run import layers_in, of_outputs, rounding
from prunekit.graph.surgery import put_modules
from prunekit.measure.forward_pass import call_of
from prunekit.modes import evaluating
from prunekit.runtime.sparse_layers import KERNELS, SparseConv2d, SparseLinear
from prunekit.targets import check_plain, check_unparametrized, check_whole, unwrap

SLOWEST = 0.9
"""The share of a dense layer's time that a sparse one may take to be chosen; noise is less than the rest."""
ROUNDS = 15, 101
"""How many turns are timed at least and at most."""
SECONDS = 0.5  # that timing goes on for, within these


@dataclass(frozen=True)
class LayerTimes:
    """What a layer takes, dense and sparse, in a pass of the example inputs.

    Attributes:
        name: the full name of the layer.
        density: the share of its weights that is not zero.
        dense: median of its seconds in a pass of the network; None where it was not measured.
        sparse: likewise, where all layers that were measured are sparse.
        chosen: whether it runs sparse now.
        reason: why it stays dense, if it is not for its own times.
    """

    name: str
    density: float
    dense: float | None = None
    sparse: float | None = None
    chosen: bool = False
    reason: str = ""


@dataclass(frozen=True)
class SparsifyResult:
    """Which layers of a network run sparse now, and what that is worth.

    Attributes:
        model: the network that was given; the sparse layer where it was a single layer itself.
        layers: all linear layers and two-dimensional convolutions.
        dense: median of the seconds of one pass of the example inputs with dense layers.
        sparse: with those that were chosen for their own times sparse.
        deviation: the largest difference of outputs, see `same_function`.
        batch: how many examples were measured on.
        threads: that PyTorch had for one operation.
    """

    model: nn.Module
    layers: tuple[LayerTimes, ...]
    dense: float | None
    sparse: float | None
    deviation: Deviation
    batch: int
    threads: int

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the layers that run sparse."""
        return tuple(layer.name for layer in self.layers if layer.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the network, as plain JSON values."""
        return {
            "layers": [asdict(layer) for layer in self.layers],
            "dense": self.dense,
            "sparse": self.sparse,
            "deviation": asdict(self.deviation),
            "batch": self.batch,
            "threads": self.threads,
        }

    def __str__(self) -> str:
        width = min(40, max([len("network"), *(len(layer.name) for layer in self.layers)]))
        lines = [f"{'layer':<{width}}  {'density':>7}  {'dense µs':>9}  {'sparse µs':>9}  chosen"]
        for layer in self.layers:
            name = layer.name if len(layer.name) <= width else "…" + layer.name[1 - width :]
            chosen = layer.reason or ("sparse" if layer.chosen else "dense")
            times = f"{_micro(layer.dense)}  {_micro(layer.sparse)}"
            lines.append(f"{name:<{width}}  {100 * layer.density:>6.1f}%  {times}  {chosen}")
        lines.append(f"{'network':<{width}}  {'':>7}  {_micro(self.dense)}  {_micro(self.sparse)}")
        lines.append(
            f"batch {self.batch}, threads {self.threads}; "
            f"same function: largest relative difference {self.deviation.relative:.1e}"
        )
        return "\n".join(lines)


@torch.inference_mode(False)  # buffers made in it could not be used in training
def sparsify_for_cpu(model: nn.Module, example_inputs: Inputs) -> SparsifyResult:
    """Let layers of a pruned network run by sparse kernels, in place, where that is faster on this machine.

    Each linear layer and two-dimensional convolution that holds zeros is timed in passes of the example
    inputs, in turns with a sparse layer, by as many threads as PyTorch has. A `SparseLinear` or
    `SparseConv2d` takes its place if it needs at most nine tenths of the time, and if the network as a whole
    is faster then. That depends on the batch: give examples of the size that the network will run on. The
    network is compared with the dense one in float64 (`same_function`), and each new layer with the old one
    in its own precision.

    It is the last step, after loading: sparse layers are not trained, and another machine may choose others.
    Layers stay dense that share weights with others, have hooks, are convolutions in groups, of a precision
    without sparse kernels, or not called.

    Args:
        model: the network, on the CPU.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.

    Raises:
        InputError: if `example_inputs` have no tensor with a batch.
        ModelError: if no layer holds zeros, a module is parametrized, as by gates, or on another device, or
            the network cannot be copied or run.
        VerificationError: if the sparse network computes something else. In every case the model is exactly
            as it was.
    """
    model = unwrap(model)
    inputs = tree_map_only(Tensor, lambda tensor: tensor.cpu(), example_inputs)
    call = call_of(inputs, torch.device("cpu"))
    layers = _layers(model)
    reasons = _reasons(model, layers)
    sparse = {name: _sparse(layer) for name, layer in layers.items() if name not in reasons}
    with evaluating(model), torch.no_grad():
        called = _verified(model, sparse, call)
        sparse = {name: sparse[name] for name in called}
        found = in_turns(model, _with_layers(copy_of(model), sparse), call, called)
        sparse = {name: sparse[name] for name in called if found.layers[name].ratio <= SLOWEST}
        candidate = _with_layers(copy_of(model), sparse)
        deviation = same_function(model, candidate, inputs)
        if not deviation.accepted:
            raise VerificationError(f"the sparse network computes something else: {deviation}")
        whole = in_turns(model, candidate, call).whole
    if whole.ratio > 1:  # layers may take longer behind sparse ones
        reasons.update(dict.fromkeys(sparse, "network not faster"))
        sparse = {}
    times = []
    for name, layer in layers.items():
        turns = found.layers.get(name, Turns())
        reason = reasons.get(name, "" if name in called else "not called")
        times.append(LayerTimes(name, _density(layer), turns.dense, turns.sparse, name in sparse, reason))
    return SparsifyResult(
        _with_layers(model, sparse),
        tuple(times),
        whole.dense,
        whole.sparse,
        deviation,
        call.batch,
        torch.get_num_threads(),
    )


# ---- what a pass takes, dense and sparse -------------------------------------------------------------------


class Turns(NamedTuple):
    """Medians of the seconds of a dense and a sparse run, and of their ratio in each turn."""

    dense: float | None = None
    sparse: float | None = None
    ratio: float = 1.0


class Times(NamedTuple):
    """Of a network as a whole and of its layers in it, by their names."""

    whole: Turns
    layers: dict[str, Turns]


def in_turns(
    dense: nn.Module, sparse: nn.Module, call: Callable[[nn.Module], Any], names: Sequence[str] = ()
) -> Times:
    """Time two networks and layers of the same names in them, in turns: what else goes on hits both alike.

    Layers are timed in passes of the network: with what they read and what fills the caches there. It is the
    time of the processor where PyTorch has one thread, the clock's where several share the work.
    """
    clock = process_time if torch.get_num_threads() == 1 else perf_counter
    with ExitStack() as stack:
        ways = [stack.enter_context(_stopwatch(model, call, names, clock)) for model in (dense, sparse)]
        for way in ways:
            way()
        once = sum(way()[0] for way in ways)
        rounds = min(max(ROUNDS[0], math.ceil(SECONDS / max(once, 1e-9))), ROUNDS[1])
        turns = []
        for number in range(rounds):
            first, second = ways[number % 2](), ways[1 - number % 2]()
            turns.append((second, first) if number % 2 else (first, second))
    whole, *layers = (
        Turns(
            median(each[place] for each, _ in turns),
            median(each[place] for _, each in turns),
            median(each[place] / max(other[place], 1e-9) for other, each in turns),
        )
        for place in range(1 + len(names))
    )
    return Times(whole, dict(zip(names, layers, strict=True)))


@contextmanager
def _stopwatch(
    model: nn.Module, call: Callable[[nn.Module], Any], names: Sequence[str], clock: Callable[[], float]
) -> Iterator[Callable[[], list[float]]]:
    """What runs the network and gives the seconds of the pass and of the layers in it."""
    seconds: dict[str, float] = {}

    def timed(name: str, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        began = clock()
        output = forward(*args, **named)
        seconds[name] += clock() - began
        return output

    def run() -> list[float]:
        seconds.update(dict.fromkeys(names, 0.0))
        began = clock()
        call(model)
        return [clock() - began, *(seconds[name] for name in names)]

    with _calls(model, names, timed):
        yield run


@contextmanager
def _calls(model: nn.Module, names: Iterable[str], around: Callable[..., Any]) -> Iterator[None]:
    """Let `around(name, forward, ...)` be what layers compute; hooks would turn fused layers of torch off."""
    with ExitStack() as stack:
        for name in names:
            layer = model.get_submodule(name)
            layer.forward = partial(around, name, layer.forward)
            stack.callback(vars(layer).pop, "forward")
        yield


# ---- which layers can be sparse ----------------------------------------------------------------------------


def _layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers that there are sparse ones for, by their first names; classes of the user's may do more.

    Raises:
        ModelError: where the network is not whole, plain and on the CPU, or nothing is zero.
    """
    check_whole(model)
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.device.type != "cpu":
            raise ModelError(
                f"{name} is on {tensor.device}: sparse layers are for the CPU, call model.cpu() first"
            )
    check_unparametrized(model)
    layers = {name: each for name, each in model.named_modules() if type(each) in (nn.Linear, nn.Conv2d)}
    for name, layer in layers.items():
        matrices = [short for short, value in layer.named_parameters() if value.dim() > 1]
        check_plain(model, [f"{name}.{short}".lstrip(".") for short in matrices], ignorable=False)
    if all(_density(layer) == 1 for layer in layers.values()):
        raise ModelError(
            "no linear layer or two-dimensional convolution holds zeros: prune the network first"
        )
    return layers


def _reasons(model: nn.Module, layers: Mapping[str, nn.Linear | nn.Conv2d]) -> dict[str, str]:
    """Why some layers stay dense."""
    owners = Counter(id(value) for each in model.modules() for value in each._parameters.values())
    found = {}
    for name, layer in layers.items():
        hooks = (
            layer._forward_pre_hooks,
            layer._forward_hooks,
            layer._backward_pre_hooks,
            layer._backward_hooks,
        )
        if _density(layer) == 1:
            found[name] = "no zeros"
        elif any(owners[id(value)] > 1 for value in layer._parameters.values() if value is not None):
            found[name] = "tied"
        elif any(hooks) or "forward" in vars(layer):
            found[name] = "hooks"
        elif layer.weight.dtype not in KERNELS:
            found[name] = str(layer.weight.dtype).removeprefix("torch.")
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            found[name] = f"{layer.groups} groups"
    return found


def _density(layer: nn.Linear | nn.Conv2d) -> float:
    return int(layer.weight.count_nonzero()) / max(1, layer.weight.numel())


# ---- sparse layers in their places -------------------------------------------------------------------------


def _verified(
    model: nn.Module, sparse: Mapping[str, nn.Module], call: Callable[[nn.Module], Any]
) -> tuple[str, ...]:
    """The names of the sparse layers that are called and compute what the dense ones do.

    Raises:
        ModelError: where the network cannot be run.
        VerificationError: where a layer computes something else.
    """
    called: dict[str, Deviation] = {}

    def compared(name: str, forward: Callable[..., Any], *args: Any, **named: Any) -> Any:
        output = forward(*args, **named)
        tolerance = rounding(layers_in(model.get_submodule(name)), output.dtype)
        called[name] = of_outputs([output], [sparse[name](*args, **named)], 0.0, tolerance, f" of {name}")[0]
        if not called[name].accepted:
            raise VerificationError(f"a sparse layer computes something else: {called[name]}")
        return output

    with (
        explaining(ModelError, lambda: "the network cannot be run on example_inputs"),
        _calls(model, sparse, compared),
    ):
        call(model)
    return tuple(name for name in sparse if name in called)


def _sparse(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    sparse = SparseConv2d(layer) if isinstance(layer, nn.Conv2d) else SparseLinear(layer.weight, layer.bias)
    return sparse.train(layer.training)


def _with_layers(model: nn.Module, layers: Mapping[str, nn.Module]) -> nn.Module:
    """The model with other layers in all their places; the layer itself where the model is one."""
    if "" in layers:
        return layers[""]
    new = {id(model.get_submodule(name)): layer for name, layer in layers.items()}
    modules = model.named_modules(remove_duplicate=False)
    put_modules(model, {place: new[id(module)] for place, module in list(modules) if id(module) in new})
    return model


def _micro(seconds: float | None) -> str:
    return f"{'-' if seconds is None else f'{1e6 * seconds:,.1f}':>9}"
