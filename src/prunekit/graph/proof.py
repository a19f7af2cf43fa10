"""The proof that two networks compute the same function: outputs and gradients, to rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.errors import ModelError
from prunekit.graph.cached_path import with_cache
from prunekit.graph.capture import tensors_of
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.coupling_graph import KeepMasks
from prunekit.graph.draws import Draws
from prunekit.graph.gradient_differences import GradientDifferences, GradientSlices
from prunekit.graph.other_inputs import Arguments, drawn, shuffled
from prunekit.graph.proof_run import Entered, ProofCopy, ProofRun, exact_copy, in_precision, with_gradients
from prunekit.graph.reference_run import Deviation, VerificationError, of_outputs, rounding
from prunekit.graph.surgery import Axes, Cut
from prunekit.masks import Masks
from prunekit.targets import count_parameters

UNTOUCHED = "; the model is as it was"
AFFORDABLE = 2**28  # parameters of which a copy in float64 is made: 2 GiB
HELD = 2**22  # parameters of which copies of both networks are in memory at once: 64 MiB in float64
Candidate = nn.Module | Callable[[], nn.Module]
"""A smaller network, or what makes it, each time anew, so that it need not be held."""


def same_function(
    reference: nn.Module,
    candidate: nn.Module,
    inputs: Inputs,
    *,
    tolerance: float | None = None,
    gradients: Mapping[str, Axes] | None = None,
) -> Deviation:
    """Compare two networks in evaluation mode, on copies: in float64 where that is affordable.

    Args:
        reference: the network to agree with.
        candidate: the other one.
        inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        tolerance: the relative difference that counts as rounding; by default 1000 units in the last place
            for each layer.
        gradients: compare the gradients of all parameters of the candidate, too, for a random weighting of
            the outputs; here stands what the candidate kept of the reference's parameters, by full name.

    Returns:
        The largest difference; it is the caller's to ask whether it is `accepted`.

    Raises:
        ModelError: if a network cannot be copied or run, or gives no tensor of real numbers.
        VerificationError: if it is the candidate that cannot be run, or its outputs have other shapes.
    """
    call = arguments(inputs)
    first = Reference(reference, call, what="reference", affordable=AFFORDABLE)
    second = _copied(candidate, first.dtype, "candidate")
    if gradients is None:
        expected = first.run(call, magnitudes=True)
        first.release()
        return _deviation(expected, second.run(call), _tolerance(tolerance, second, expected))
    slices = partial(GradientSlices, gradients, [name for name, _ in candidate.named_parameters()])
    wanted = first.run_with_gradients(call, slices, magnitudes=True)
    return _deviation_with_gradients(wanted, second, call, tolerance)


class Reference(ProofCopy):
    """The network to agree with, in float64 where the device has it and that is affordable.

    Args:
        model: the network; copies of it are run.
        call: the arguments that it will be run on.
        keeping: as of `ProofCopy`.
        calls: as of `ProofCopy`.
        off: what stays of its tensors; the rest is zero in the copies.
        masks: of single weights; removed ones are zero in the copies.
        what: as of `ProofCopy`.
        affordable: up to how many parameters copies in float64 are made; None for any number.
        held: as of `ProofCopy`.
    """

    def __init__(
        self,
        model: nn.Module,
        call: Arguments,
        keeping: KeepMasks | None = None,
        calls: int = 1,
        *,
        off: Mapping[str, Axes] = MappingProxyType({}),
        masks: Masks | None = None,
        what: str = "masked",
        affordable: int | None = None,
        held: bool = False,
    ) -> None:
        given = [each for each in pytree.tree_leaves(call) if isinstance(each, Tensor)]
        too_many = affordable is not None and count_parameters(model) > affordable
        without = any(tensor.device.type == "mps" for tensor in [*model.parameters(), *given])
        dtype = None if too_many or without else torch.float64
        super().__init__(self._masked, dtype, what, ModelError, calls, keeping, held=held)
        self._network, self._masks = model, masks or Masks({})
        self._off = dict(off)

    def run_on_given(self, call: Arguments, draws: Entered) -> ProofRun:
        """What it gives in evaluation mode.

        Where it gives what is no number, as where it divides by a buffer that would be zero, such as a spread
        for each channel, buffers keep their values from then on.

        Raises:
            ModelError: where it cannot be run.
        """
        run = partial(self.run, call, draws=draws, magnitudes=True, derivatives=True)
        found = run()
        buffers = [name for name, _ in self._network.named_buffers() if name in self._off]
        if buffers and not all(bool(each.isfinite().all()) for each in found.outputs):
            for name in buffers:
                del self._off[name]
            self.release()
            found = run()
        return found

    def _masked(self) -> nn.Module:
        copied = exact_copy(self._network, self.dtype)
        self._masks.apply(copied)
        found = tensors_of(copied)
        for name, axes in self._off.items():
            for axis, flags in axes.items():
                gone = (~flags).nonzero().flatten()
                found[name].data.index_fill_(axis, gone.to(found[name].device), 0)
        return copied


def masked_reference(
    model: nn.Module,
    tensors: Mapping[str, Axes],
    inputs: Inputs,
    keeping: KeepMasks | None = None,
    calls: int = 1,
    masks: Masks | None = None,
) -> Reference:
    """The masked network: zeros in all slices of the units, statistics over what is kept.

    Args:
        model: the network as it is; its graphs, where statistics run over units.
        tensors: what stays of each tensor.
        inputs: that it will be run on.
        keeping: what stays of each node of the graphs.
        calls: as of `ProofCopy`.
        masks: of single weights; removed ones are zero.
    """
    held = count_parameters(model) <= HELD
    return Reference(model, arguments(inputs), keeping, calls, off=tensors, masks=masks, held=held)


def proven(
    reference: Reference,
    candidate: Candidate,
    cut: Cut,
    inputs: Inputs,
    *,
    training: bool = True,
    tolerance: float | None = None,
    narrow: Callable[[Tensor], Tensor] | None = None,
    draws: Callable[[bool], Draws | None] | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Deviation:
    """Compare on given and on random inputs, with the gradients of the random ones.

    In training mode only where the reference runs in it: some batch norms refuse a single example. Where both
    networks give the same in both modes, by the same operations, there is no more to compare in it. Large
    networks are in memory one after the other, and in each mode each is run twice: on the given inputs, and
    on the random ones with its gradients, of which those of the reference are kept that the smaller one has.
    The smaller one is run first: it is seen before all else whether it can be run.

    Args:
        reference: the masked network.
        candidate: the smaller one.
        cut: what stays of each tensor, and what was multiplied.
        inputs: of the reference.
        training: whether in training mode, too.
        tolerance: as in `same_function`.
        narrow: from a tensor of the reference's inputs to the candidate's, if they are others.
        draws: `(training)`, what hands the random numbers that the reference draws to the candidate, if any.
        names: of parameters of the candidate, those that they have in the reference, where these are others.

    Raises:
        ModelError: where the reference cannot be run.
        VerificationError: where the smaller network cannot be run or computes something else.
    """
    small = _copied(candidate, reference.dtype, "smaller", reference.calls, held=reference.held)
    pair = _Pair(reference, small, cut, names, tolerance, narrow, draws)
    call = arguments(inputs)
    parameters = [name for name, _ in small.model.named_parameters()]
    first = small.run(pair.narrowed(call), derivatives=True, last=True)
    worst: list[Deviation] = []
    for mode in (False, True) if training else (False,):
        what = f" in {'training' if mode else 'evaluation'}" if training else ""
        for deviation in pair.deviations(call, first, parameters, what, training=mode):
            if not deviation.accepted:
                if not reference.held:  # it may not have come to its gradients, which use it up
                    reference.release()
                raise VerificationError(
                    f"the smaller network computes something else than the masked one: {deviation}{UNTOUCHED}"
                )
            worst.append(deviation)
    return max(worst, key=_relative)


@dataclass
class _Pair:
    """The masked network and the smaller one, and how they are compared; see the arguments of `proven`.

    Attributes:
        expected: what the masked one gave in evaluation mode.
    """

    reference: Reference
    small: ProofCopy
    cut: Cut
    names: Mapping[str, str]
    tolerance: float | None
    narrow: Callable[[Tensor], Tensor] | None
    draws: Callable[[bool], Draws | None] | None
    expected: ProofRun | None = None

    def narrowed(self, call: Arguments) -> Arguments:
        """The arguments of the smaller network."""
        return call if self.narrow is None else pytree.tree_map_only(Tensor, self.narrow, call)

    def deviations(
        self, call: Arguments, first: ProofRun, parameters: Collection[str], what: str, *, training: bool
    ) -> Iterator[Deviation]:
        """The differences in a mode, none in training mode where the reference does not run in it.

        Args:
            call: the given arguments.
            first: what the smaller network gives for them in evaluation mode, with random numbers of its own.
            parameters: the names of those of the smaller network.
            what: is run, for the text.
            training: the mode.
        """
        (draw, again), (draw_random, again_random) = self._drawing(training), self._drawing(training)
        try:
            expected = (
                self.reference.run(call, training=True, draws=draw, magnitudes=True, derivatives=True)
                if training
                else self.reference.run_on_given(call, draw)
            )
        except ModelError:
            if training:
                return
            raise
        drawn_again = again is not nullcontext  # numbers that the reference drew
        compared = partial(_deviation, expected, what=what)
        if training and not drawn_again and self.expected is not None and expected.same_as(self.expected):
            if not self.reference.held:
                self.reference.release()
            found = self.small.run(self.narrowed(call), training=True, derivatives=True)
            if found.same_as(first):
                yield compared(found, _tolerance(self.tolerance, self.small, expected))
                return
        self.expected = expected
        if not training and not drawn_again:  # before all that takes longer
            yield compared(first, _tolerance(self.tolerance, self.small, expected))
        words = None if training else _expected_words(self.reference, call)
        # at a kink (a ReLU at 0, a tie in a maximum) rounding decides on gradients: random inputs hit none
        slices = partial(GradientSlices, self.cut.tensors, parameters, self.names, self.cut.factors)
        random, wanted = self._of_random_inputs(call, slices, draw_random, training=training)
        if training or drawn_again:
            found = self.small.run(self.narrowed(call), training=training, draws=again)
            yield compared(found, _tolerance(self.tolerance, self.small, expected))
        if words is not None:
            yield from _words_deviation(words, self.small, call, self.tolerance)
        what = f"{what}, random inputs" if what else ""
        yield _deviation_with_gradients(
            wanted,
            self.small,
            self.narrowed(random),
            self.tolerance,
            what,
            training=training,
            draws=again_random,
        )

    def _drawing(self, training: bool) -> tuple[Entered, Entered]:
        """What a run of the reference, and then one of the smaller network, is within."""
        draws = None if self.draws is None else self.draws(training)
        if draws is None:
            return nullcontext, nullcontext
        return (lambda: draws), draws.again

    def _of_random_inputs(
        self, call: Arguments, slices: Callable[[], GradientSlices], draws: Entered, *, training: bool
    ) -> tuple[Arguments, _WithGradients]:
        """Random inputs that the reference takes, and what it gives for them with its gradients."""
        run = partial(
            self.reference.run_with_gradients,
            begin=slices,
            training=training,
            draws=draws,
            magnitudes=True,
        )
        random = drawn(call)
        whole = [each for each in pytree.tree_leaves(call) if isinstance(each, Tensor)]
        try:
            return random, run(random)
        except ModelError:  # of lengths and positions not every integer is allowed
            if all(each.is_floating_point() for each in whole):
                raise
        random = shuffled(call)
        return random, run(random)


def _expected_words(reference: Reference, call: Arguments) -> Tensor | None:
    """What a language model gives on the way that `generate()` goes; None where it is none, or goes none."""
    try:
        return _words(reference, call)
    except Exception:  # it takes its words in another way, or more than words
        return None


def _words(copy: ProofCopy, call: Arguments) -> Tensor | None:
    with copy.prepared(training=False), torch.no_grad():
        return with_cache(copy.model, copy.converted(call))


def _words_deviation(
    expected: Tensor, small: ProofCopy, call: Arguments, tolerance: float | None
) -> list[Deviation]:
    """The difference on the way that `generate()` goes; none of a graph, which has no such way."""
    try:
        found = _words(small, call)
    except Exception as error:  # whatever the user's forward raises
        raise VerificationError(
            f"the smaller network failed where it generates with a cache: {type(error).__name__}: {error}"
        ) from error
    if found is None and isinstance(small.model, GraphModel):
        return []
    wanted = ProofRun([expected])
    tolerance = _tolerance(tolerance, small, wanted)
    return [_deviation(wanted, ProofRun([] if found is None else [found]), tolerance, " with a cache")]


def run_both(model: nn.Module, other: nn.Module, inputs: Inputs, masks: Masks | None = None) -> Deviation:
    """How far exported graphs, or a masked copy, are from the network itself, in both modes."""
    call = arguments(inputs)
    reference = Reference(model, call, what="given", masks=masks)
    expected = [reference.run(call, training=training, magnitudes=True) for training in (False, True)]
    reference.release()
    second = _copied(other, reference.dtype, "exported", masks=masks)
    found = [second.run(call, training=training) for training in (False, True)]
    pairs = zip(expected, found, (" in evaluation", " in training"), strict=True)
    return max(
        (_deviation(one, two, _tolerance(None, second, one), what) for one, two, what in pairs),
        key=_relative,
    )


_WithGradients = tuple[ProofRun, GradientSlices | None, str]


def _deviation_with_gradients(
    wanted: _WithGradients,
    second: ProofCopy,
    call: Arguments,
    tolerance: float | None,
    what: str = "",
    *,
    training: bool = False,
    draws: Entered = nullcontext,
) -> Deviation:
    """The largest difference of outputs and of the gradients that there are of the reference."""
    expected, slices, _ = wanted
    tolerance = _tolerance(tolerance, second, expected)
    if slices is None:
        return _deviation(expected, second.run(call, training=training, draws=draws), tolerance, what)
    begin = partial(GradientDifferences, slices, tolerance, what)
    found, differences, why = second.run_with_gradients(call, begin, training=training, draws=draws)
    of_outputs = _deviation(expected, found, tolerance, what)
    if differences is None:
        raise VerificationError(f"the smaller network has no gradients: {why}")
    return max([of_outputs, *differences.all()], key=_relative)


def _deviation(expected: ProofRun, found: ProofRun, tolerance: float, what: str = "") -> Deviation:
    """The largest difference of outputs."""
    every = of_outputs(expected.outputs, found.outputs, expected.magnitude, tolerance, what)
    return max(every, key=_relative)


def _tolerance(given: float | None, second: ProofCopy, expected: ProofRun) -> float:
    return rounding(second.layers, expected.outputs[0].dtype) if given is None else given


def _relative(deviation: Deviation) -> float:
    return deviation.relative


def _copied(
    candidate: Candidate,
    dtype: torch.dtype | None,
    what: str,
    calls: int = 1,
    masks: Masks | None = None,
    *,
    held: bool = False,
) -> ProofCopy:
    """The network that is held against the reference."""

    def made() -> nn.Module:
        if isinstance(candidate, nn.Module):
            copied = exact_copy(candidate, dtype)
        else:
            copied = with_gradients(in_precision(candidate(), dtype))
        if masks is not None:
            masks.apply(copied)
        return copied

    return ProofCopy(made, dtype, what, VerificationError, calls, held=held)
