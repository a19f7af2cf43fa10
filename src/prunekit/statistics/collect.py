"""One pass over the data for every statistic that is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit import graph
from prunekit.batches import Batch, read_batch
from prunekit.distributed import Owners, count_processes, means_over_processes, on_processes
from prunekit.errors import DataError, ModelError, explaining
from prunekit.modes import keeping_modes
from prunekit.targets import device_of
from prunekit.task import PLAIN, Task


@dataclass(frozen=True)
class StatContext:
    """What a statistic is collected of, and what the collectors of one pass share.

    Attributes:
        model: the network, without wrappers.
        names: the parameters that are of interest, by full name.
        coupled: coupled groups of any network, where their units are counted.
        kept: by group of units, (units,) booleans: False for those that are off already.
        task: how the network is fed a batch, and what its loss is.
        shared: what the collectors of one pass have in common, by keys of their own.
        owners: by parameter the process that alone gets what grows with the square of a layer's inputs; where
            there is none, all do.
        progress: told how far statistics are that take long behind the pass, as (done, in all).
    """

    model: nn.Module
    names: Sequence[str]
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    task: Task = PLAIN
    shared: dict[object, Any] = field(default_factory=dict)
    coupled: graph.Coupled | None = None
    owners: Owners = field(default_factory=dict)
    progress: Callable[[int, int], None] | None = None


class Statistic(ABC):
    """A request for something measured on data; equal requests are served by one collector.

    Subclasses are frozen dataclasses, so that they can be the keys of what was found.

    Attributes:
        needs_loss: whether the collector looks at the loss of a pass through the whole network.
        takes_loss: whether it takes the loss of outputs by itself, in passes of its own.
        needs_forward: whether it watches such a pass, with or without its loss.
        additive: whether a process without examples simply adds nothing; otherwise it is an error on all.
        of_pairs: whether it grows with the square of a layer's inputs. Where layers have owners, only the
            owner of a layer is given it.
    """

    needs_loss: ClassVar[bool] = True
    takes_loss: ClassVar[bool] = False
    needs_forward: ClassVar[bool] = False
    additive: ClassVar[bool] = False
    of_pairs: ClassVar[bool] = False

    @property
    def rows(self) -> object:
        """Equal for requests of a pass that share what they sum up."""
        return self

    def held_bytes(self, columns: int, rows: int, calls: int) -> int:
        """The memory, at most, that is held of a layer until the pass ends, where it grows with the layer.

        Args:
            columns: inputs of the layer.
            rows: of inputs in each call.
            calls: of the layer in the pass.
        """
        return 0

    def taking_bytes(self, columns: int, rows: int, calls: int) -> int:
        """The memory, at most, for taking in rows of a layer; arguments as of `held_bytes`."""
        return 0

    @abstractmethod
    def start(self, subject: StatContext) -> Collector:
        """A collector for this subject."""


class Collector(ABC):
    """Gathers one statistic while the batches of a pass go by. Sums are additive over processes."""

    def batch(self, batch: Batch, loss: Tensor, terms: float) -> None:
        """Take in a batch and its mean loss, with the graph behind it, and how many terms that averages.

        The loss is NaN, without a graph, if no statistic of the pass needs it; the terms are examples then.
        """
        return

    def watching(self, batch: Batch) -> AbstractContextManager[Any]:
        """What the collector puts around the pass of a batch through the network, such as hooks."""
        return nullcontext()

    @abstractmethod
    def finish(self) -> dict[str, Tensor]:
        """One tensor per parameter or group of units, reduced over all processes."""


@contextmanager
def watched_calls(
    layers: Mapping[str, nn.Module], see: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Every call of a layer is shown with the layer's name, its input and its output.

    Args:
        layers: by names of the caller's.
        see: (name, input, output) -> what goes on in place of the output, or None.
    """

    def hook(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return see(name, args[0] if args else next(iter(kwargs.values())), output)

    hooks = [
        layer.register_forward_hook(partial(hook, name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


@contextmanager
def following(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Autograd follows these parameters, frozen ones as well."""
    frozen = [each for each in parameters if each.is_floating_point() and not each.requires_grad]
    for each in frozen:
        each.requires_grad_(True)
    try:
        yield
    finally:
        for each in frozen:
            each.requires_grad_(False)


Found = Mapping[Statistic, Mapping[str, Tensor]]
"""What a pass found: for every request, one tensor per parameter or group of units."""


def collect(
    subject: StatContext,
    batches: Iterable[Batch | tuple[Any, Any]],
    needs: Iterable[Statistic],
    *,
    task: Task | None = None,
    around: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Found:
    """Run the model once over the batches, in eval mode, and gather every statistic that is asked for.

    The model's parameters, gradients and training flags are left as they were. A batch whose loss counts
    nothing, as where all targets are ignored, says nothing of the loss.

    Args:
        subject: what is looked at.
        batches: the examples.
        needs: the requests.
        task: how the network is fed, in place of the subject's.
        around: what goes around the pass of each batch, within what the collectors put there; without a loss
            it may end the pass.

    Raises:
        DataError: if there is no batch, or the loss on one is not finite.
    """
    requests = list(dict.fromkeys(needs))
    if not requests:
        return {}
    model, task = subject.model, task or subject.task
    subject = replace(subject, task=task, shared={})
    needs_loss = any(request.needs_loss for request in requests)
    needs_forward = needs_loss or any(request.needs_forward for request in requests)
    followed = map(model.get_parameter, subject.names) if needs_loss else ()
    with keeping_modes(model), following(followed):
        collectors = [request.start(subject) for request in requests]
        model.eval()
        seen = 0
        for batch in map(read_batch, batches):
            value, terms = torch.tensor(torch.nan), float(len(batch))
            if needs_forward:
                with ExitStack() as stack:
                    for collector in collectors:
                        stack.enter_context(collector.watching(batch))
                    stack.enter_context(around())
                    stack.enter_context(torch.set_grad_enabled(needs_loss))
                    where = partial("batch {} of the data, {}".format, seen, batch.described)
                    stack.enter_context(explaining(ModelError, where))
                    outputs = task.run(model, batch)
                    if needs_loss:
                        value, terms = task.loss(outputs, batch.targets), task.terms(outputs, batch.targets)
            if needs_loss and not terms:
                value = value.nan_to_num(0.0)
            if needs_loss and not bool(torch.isfinite(value)):
                raise DataError(
                    f"the loss on calibration batch {seen} is {value.item()}: scores would be NaN"
                )
            for collector in collectors:
                collector.batch(batch, value, terms)
            seen += 1
        _check_seen(model, seen, additive=all(request.additive for request in requests))
        return {request: one.finish() for request, one in zip(requests, collectors, strict=True)}


def _check_seen(model: nn.Module, seen: int, *, additive: bool) -> None:
    """All processes find the same."""
    without, processes = count_processes(seen == 0, device_of(model))
    if without and (without == processes or not additive):
        where = on_processes(without, processes)
        raise DataError(f"the calibration data is empty{where}: there is no batch to collect statistics from")


@torch.no_grad()
def average(
    model: nn.Module,
    batches: Iterable[Batch],
    measure: Callable[[Any, Any], Tensor],
    task: Task,
    device: torch.device,
    terms: Callable[[Any, Any], float] | None = None,
) -> float:
    """The mean of a measurement over all terms of all processes; NaN if there are none.

    Args:
        model: run in evaluation mode; its training flags are put back.
        batches: on the network's device.
        measure: (outputs, targets) -> a scalar, the mean over the terms of the batch.
        task: how the network is fed.
        device: where processes exchange their sums.
        terms: (outputs, targets) -> how many terms there are; by default those of the task's loss.
    """
    total, count = 0.0, 0.0
    with keeping_modes(model):
        model.eval()
        for batch in batches:
            outputs = task.run(model, batch)
            here = (terms or task.terms)(outputs, batch.targets)
            if here:
                total += float(measure(outputs, batch.targets)) * here
                count += here
    sums = {"": torch.tensor(total, dtype=torch.float64, device=device)}
    return float(means_over_processes(sums, count)[""])


def layer_label(name: str) -> str:
    """What a weight's layer is called in messages."""
    return name.rpartition(".")[0] or "the model"


def never_ran(name: str, layer: nn.Module, of_it: str, where: str = "") -> DataError:
    """Nothing is known of a layer.

    Args:
        name: of its weight.
        layer: it.
        of_it: what is not known.
        where: on which processes, if not on all.
    """
    if type(layer) is nn.modules.linear.NonDynamicallyQuantizableLinear:  # the kind that attention has
        return DataError(
            f"nn.MultiheadAttention calls the layer {layer_label(name)!r} as a function, not as a layer, so "
            f"nothing is known of its {of_it}: name it in `ignore`"
        )
    return DataError(
        f"the layer {layer_label(name)!r} never ran on the calibration data{where}, so nothing is known of "
        f"its {of_it}: name it in `ignore`, or give data that reaches it"
    )
