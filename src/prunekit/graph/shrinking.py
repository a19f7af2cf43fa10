"""Taking units out of a network, proven to compute what the masked one does."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.display import Displayed
from prunekit.errors import InputError, ModelError
from prunekit.garbage import old_objects_left_alone
from prunekit.graph.any_size import of_any_size
from prunekit.graph.capture import takes
from prunekit.graph.captured_graph import GraphModel
from prunekit.graph.class_fit import Misfit, in_the_way, misfit
from prunekit.graph.copies import copy_of, sharing_copy
from prunekit.graph.coupling_graph import INPUT, CouplingGraph, KeepMasks
from prunekit.graph.draws import Draws, draws_of
from prunekit.graph.equal_pieces import started
from prunekit.graph.fitted_settings import fit_settings
from prunekit.graph.plan import traced
from prunekit.graph.proof import UNTOUCHED, Candidate, masked_reference, proven, run_both
from prunekit.graph.proof_run import in_precision
from prunekit.graph.reference_run import Deviation, VerificationError
from prunekit.graph.staying import chosen
from prunekit.graph.surgery import (
    Axes,
    Cut,
    Operation,
    checked,
    operate,
    operation,
    own_module,
    smaller_masks,
    unit_masks,
    zeroed,
)
from prunekit.masks import Masks
from prunekit.modes import holding
from prunekit.targets import count_parameters

Form = Literal["modules", "graph"]
"""Whether a network is what it was, with smaller layers, or a graph."""


@dataclass(frozen=True)
class GroupSize:
    """How many units a group had and has."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class ShrinkResult(Displayed):
    """What was taken out of a network, and how well the smaller one agrees with the masked one.

    Attributes:
        model: the network. In the form of modules it is the one that was given, with smaller layers; in the
            form of a graph it is a new module, and the one that was given is as it was.
        form: "modules" where the classes' own code still holds; "graph" where it has sizes written in it, so
            that the captured graph with other constants takes its place. That one takes inputs of the shapes
            of the example inputs only.
        groups: how many units there were and are in the groups that lost some, and in those of which pieces
            went.
        parameters_before: of the whole network.
        parameters_after: likewise.
        deviation: the largest difference seen, among outputs and gradients, on the example inputs and on
            random ones.
        masks: the given masks of single weights, for the smaller layers.
        kept_inputs: the positions of the input features that the network still takes, if the group `input`
            was named: of images their channels, else the numbers that the first layer reads, flattened.
        reason: why the form is that of a graph.
        stayed: groups that were to lose units, but stay whole or lose fewer so that the classes' own code
            holds, each with the reason. The weights of the units that stay are zero then where these were
            chosen by name, as in `shrink`.
        seconds: of the processor for the analysis, the surgery and the proof, where they were taken.
        axes: what stays of each parameter and buffer that lost entries.
        configuration: of a network that is built from a configuration, as those of transformers are: why its
            class cannot build the smaller one from any; empty where its own says the new sizes now.
    """

    model: nn.Module
    form: Form
    groups: tuple[GroupSize, ...]
    parameters_before: int
    parameters_after: int
    deviation: Deviation
    masks: Masks = field(default_factory=lambda: Masks({}))
    kept_inputs: Tensor | None = None
    reason: str = ""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes: Mapping[str, Axes] = field(default_factory=dict)
    stayed: Mapping[str, str] = field(default_factory=dict)
    configuration: str = ""

    @property
    def lost(self) -> tuple[GroupSize, ...]:
        """The groups that lost units."""
        return tuple(group for group in self.groups if group.after < group.before)

    def __repr__(self) -> str:
        return (
            f"<ShrinkResult: {self.parameters_after:,} of {self.parameters_before:,} parameters are left, "
            f"form {self.form!r}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the network, as plain JSON values."""
        return {
            "form": self.form,
            "reason": self.reason,
            "stayed": dict(self.stayed),
            "groups": [asdict(group) for group in self.lost],
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "deviation": asdict(self.deviation),
        }

    def __str__(self) -> str:
        width = min(40, max([len("parameters"), *(len(group.name) for group in self.groups)]))
        lines = [f"{'units':<{width}}  {'before':>12}  {'after':>12}  {'left':>7}"]
        rows = [*self.groups, GroupSize("parameters", self.parameters_before, self.parameters_after)]
        for row in rows:
            share = 100 * row.after / max(1, row.before)
            name = row.name if len(row.name) <= width else "…" + row.name[1 - width :]
            lines.append(f"{name:<{width}}  {row.before:>12,}  {row.after:>12,}  {share:>6.1f}%")
        lines += [f"{name} stays as it is: {reason}" for name, reason in self.stayed.items()]
        if self.configuration:
            lines.append(f"from_pretrained cannot build it, prunekit's own files can: {self.configuration}")
        lines.append(f"same function: largest relative difference {self.deviation.relative:.1e}")
        return "\n".join(lines)


@old_objects_left_alone()
@torch.inference_mode(False)  # parameters made in it could not be trained
def shrink(
    model: nn.Module,
    example_inputs: Inputs,
    kept: Mapping[str, Tensor],
    *,
    masks: Masks | None = None,
    found: CouplingGraph | None = None,
    ignore: Sequence[str] = (),
    residual: bool = False,
    values: Mapping[str, Tensor] | None = None,
    tolerance: float | None = None,
    training: bool = True,
    form: Form = "modules",
) -> ShrinkResult:
    """Take units out of any network that PyTorch can export, and prove what is left.

    Compared are outputs and gradients with those of the masked network, in float64, in evaluation and in
    training mode, on the example inputs and on random ones. Where statistics run over the units, as in layer
    norms, the masked network's are those of the kept entries. Layers stay the same objects; parameters that
    get smaller are **new** objects (of the same dtype, device, memory format and `requires_grad`, without
    gradients), so an optimizer must be made afterwards.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments; a few examples are
            enough, more make the proof slower, not stronger.
        kept: for each group that loses units (units,) boolean flags, True = kept. The group `input` makes
            the network's own input narrower: `kept_inputs` of the result says which features it still takes.
        masks: of single weights; removed ones are set to zero.
        found: the network's plan with its graphs, if there is one already.
        ignore: names or patterns of what may not change.
        residual: whether the widths of residual streams can be pruned.
        values: new values of parameters, by full name, written before units go, with which the function is
            that of the network before, not of the masked one: what was constant is in the biases then.
        tolerance: the relative difference that counts as rounding, see `same_function`.
        training: whether the proof is for training mode, too.
        form: what is preferred where the classes' own code cannot do without some of the units: "modules" for
            the network with these units left in, their weights zero (see `stayed` of the result), or "graph"
            for a graph without them. Where that does not help, it is a graph in either case.

    Raises:
        InputError: for an unknown group, flags that are not boolean or of another length, or where nothing
            would be left of a tensor; for masks of another model; while a session or a `MaskedOptimizer` acts
            on its training: `detach` it first.
        ModelError: where the network cannot be exported, a group is frozen, or it is wrapped for distributed
            training.
        VerificationError: if the networks differ. In every case the model is exactly as it was.
    """
    model = own_module(model)
    check_examples(example_inputs)
    times = [time.process_time()]

    def analysed(inputs: Inputs = example_inputs, *, decided: bool = True) -> CouplingGraph:
        return traced(model, inputs, ignore=ignore, residual=residual, inputs=INPUT in kept, decided=decided)

    found = found or analysed()
    flags = checked(found.plan, kept)
    if any(found.plan.group(name).normalised for name in flags) and not takes(
        found.graphs[0], example_inputs
    ):
        found = analysed()  # the graphs will be run, which are made for inputs of one shape
    times.append(time.process_time())
    case = Case(model, example_inputs, masks or Masks({}), values, tolerance, training)
    result = taken_out(case, found, flags, form=form, analysed=analysed)
    analysis = times[1] - times[0]
    return replace(result, seconds=(analysis, *result.seconds[1:]))


def check_examples(example_inputs: Inputs) -> None:
    """Refuse inputs without an example."""
    tensors = [each for each in pytree.tree_leaves(arguments(example_inputs)) if isinstance(each, Tensor)]
    if not all(each.numel() for each in tensors):
        raise InputError("example_inputs must have at least one example")


# ---- the network in its own class, as far as that goes -----------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network that is to lose units, and how that is proven; see the arguments of `shrink`."""

    model: nn.Module
    example_inputs: Inputs
    masks: Masks
    values: Mapping[str, Tensor] | None = None
    tolerance: float | None = None
    training: bool = True


def taken_out(
    case: Case,
    found: CouplingGraph,
    flags: Mapping[str, Tensor],
    *,
    form: Form,
    analysed: Callable[..., CouplingGraph],
    whole: bool = False,
) -> ShrinkResult:
    """Take out the units that the network's own code can do without, or all if a graph is preferred.

    Args:
        case: the network.
        found: its plan with its graphs.
        flags: checked, of the groups that lose units.
        form: what is preferred.
        analysed: gives the plan with graphs for inputs of the shapes of the example inputs, or of others.
        whole: whether groups that stay keep all that their units do; else their units' weights become zero.
    """
    start, before = time.process_time(), count_parameters(case.model)
    left, stayed, zeros = dict(flags), dict[str, str](), case.masks
    if form == "modules":
        left, stayed = started(case.model, found, flags, whole=whole)
    work = operation(case.model, found, left)
    surgery = time.process_time() - start
    if whole or not stayed:
        proof = _Proof(case, found, left, work)
    else:
        proof = _Proof(case, found, flags, operation(case.model, found, flags))
        zeros = _with_zeros(case, found, {name: flags[name] for name in stayed})
    reason = ""
    own: Form = "modules"
    tried: set[bool] = set()  # whether what is to be done was tried with factors, and without
    while True:
        if not tried:
            work = _tempered(case, found, left, work, zeros)
        try:
            deviation = proof(partial(_candidate, case, work.cut, zeros, proof.dtype), work.cut)
            operate(case.model, work.cut, zeros, case.values)
            result = case.model
            break
        except VerificationError as error:
            failure = without_locals(error)
            reason = reason or str(error).splitlines()[0].removesuffix(UNTOUCHED)
        if not takes(found.graphs[0], case.example_inputs):
            found = analysed()
            work = operation(case.model, found, left)
        blamed = in_the_way(work, found, left)
        tried.add(bool(work.cut.factors))
        if not blamed:
            if False not in tried:
                work = _with_factors(work, {})
                continue
            place, factors = _misfit(case, work, zeros, scaling=True not in tried)
            if factors:
                work = _with_factors(work, factors)
                continue
            blamed = [] if place is None else [place.groups(found, left, before=True)]
        choice = chosen(case.model, found, left, blamed) if form == "modules" else None
        names = choice.stayed if choice else {}
        over_units = any(found.plan.group(name).normalised for name in names)
        if choice is None or INPUT in names or (over_units and not whole):
            found = _undecided(found, failure, analysed)
            own, left, stayed, zeros = "graph", dict(flags), {}, case.masks
            work = operation(case.model, found, flags)
            proof = _Proof(case, found, flags, work)
            smaller = copy_of(case.model)
            operate(smaller, work.cut, zeros, case.values)
            model = GraphModel(smaller, work.graphs)
            deviation = proof(model, work.cut)
            result = of_any_size(model, case.model, case.example_inputs, flags, work, analysed)
            break
        left, work, tried = choice.left, choice.work, set()
        stayed |= names
        if whole:
            proof = _Proof(case, found, left, work)
        else:
            zeros = _with_zeros(case, found, {name: flags[name] for name in stayed})
    configuration = ""
    if own == "modules" and work.cut.tensors:
        configuration = fit_settings(case.model, case.example_inputs)
    return ShrinkResult(
        result,
        own,
        tuple(GroupSize(name, found.plan.group(name).units, int(each.sum())) for name, each in left.items()),
        before,
        count_parameters(result),
        deviation,
        smaller_masks(zeros, work.cut),
        flags[INPUT].nonzero().flatten() if INPUT in flags else None,
        reason if own == "graph" else "",
        (0.0, surgery, time.process_time() - start - surgery),
        work.cut.tensors,
        stayed,
        configuration,
    )


class _Proof:
    """The masked network, with which smaller ones are compared.

    Args:
        case: the network.
        found: its plan with its graphs.
        flags: of the groups whose units it lacks.
        work: what takes them out.
    """

    def __init__(
        self, case: Case, found: CouplingGraph, flags: Mapping[str, Tensor], work: Operation
    ) -> None:
        case.masks.parameters(case.model)  # refuses those of another network
        whole, keeping = case.model, None
        if any(found.plan.group(name).normalised for name in flags):
            whole, keeping = GraphModel(case.model, found.graphs), work.keeping
            with holding(case.model):
                exported = run_both(case.model, whole, case.example_inputs, case.masks)
            if not exported.accepted:
                raise VerificationError(f"what was exported is not what the network computes: {exported}")
        off = zeroed(found.plan, work.cut.tensors if case.values is None else {})
        calls = 2 if any(graph.by_calls for graph in found.graphs) else 1
        self._reference = masked_reference(whole, off, case.example_inputs, keeping, calls, case.masks)
        self._case = case
        self._training = case.training and len(found.graphs) > 1  # one graph computes the same in both modes
        self._draws = partial(_draws, found, work.keeping)
        self._narrow: Callable[[Tensor], Tensor] | None = None
        if INPUT in flags:
            assert found.features is not None
            self._narrow = partial(found.features.narrowed, kept=flags[INPUT])

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of the proof; None for that of the network."""
        return self._reference.dtype

    def __call__(self, candidate: Candidate, cut: Cut) -> Deviation:
        """How far a smaller network is from the masked one.

        Raises:
            VerificationError: where it computes something else.
        """
        with holding(self._case.model):  # hooks of the copies may write to what the network itself holds
            return proven(
                self._reference,
                candidate,
                cut,
                self._case.example_inputs,
                training=self._training,
                tolerance=self._case.tolerance,
                narrow=self._narrow,
                draws=self._draws,
            )


def _tempered(
    case: Case, found: CouplingGraph, left: Mapping[str, Tensor], work: Operation, zeros: Masks
) -> Operation:
    """What is to be done, with factors that make up for a temperature where heads get narrower.

    Else it would be a proof that says so, by failing.
    """
    narrower = any(found.plan.group(name).kind == "head width" for name in left)
    if not narrower or not takes(found.graphs[0], case.example_inputs):
        return work
    return _with_factors(work, _misfit(case, work, zeros, scaling=True)[1])


def _misfit(
    case: Case, work: Operation, zeros: Masks, *, scaling: bool
) -> tuple[Misfit | None, dict[str, Tensor]]:
    """Where the network's own code does not fit the units that stay, and factors that help; see `misfit`."""
    candidate = _candidate(case, work.cut, zeros)
    return misfit(candidate, work.graphs[0], work.keeping, case.example_inputs, scaling=scaling)


def _with_factors(work: Operation, factors: Mapping[str, Tensor]) -> Operation:
    return replace(work, cut=replace(work.cut, factors=factors))


def _candidate(case: Case, cut: Cut, masks: Masks, dtype: torch.dtype | None = None) -> nn.Module:
    """A copy of the network without units, with tensors of its own in a precision if one is named.

    Else those that do not change lie in the network's memory. Parameters are multiplied in that precision.
    """
    written = {*masks, *(case.values or {}), *cut.factors}
    candidate = sharing_copy(case.model, written)
    operate(candidate, replace(cut, factors={}), masks, case.values)
    if dtype is not None:
        in_precision(candidate, dtype, own=False)
    operate(candidate, Cut({}, {}, cut.factors))
    return candidate


def _with_zeros(case: Case, found: CouplingGraph, flags: Mapping[str, Tensor]) -> Masks:
    """The masks, in which the weights of units that stay without effect are removed, too."""
    zeros = unit_masks(case.model, found.plan, flags)
    both = {name: mask & case.masks[name] if name in case.masks else mask for name, mask in zeros.items()}
    return Masks({**case.masks, **both})


def without_locals(error: VerificationError) -> VerificationError:
    """The error without what the functions held that it comes from, such as the copies of a proof."""
    each: BaseException | None = error
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__
    return error


def _undecided(
    found: CouplingGraph, error: VerificationError, analysed: Callable[..., CouplingGraph]
) -> CouplingGraph:
    """Graphs that can take the place of the network's own code, as no values decide what they do.

    Raises:
        VerificationError: where there are none.
    """
    for graph in found.graphs:
        decided = (
            ("values of the inputs", graph.by_data),
            ("values of its tensors", graph.by_state),
            ("earlier calls", graph.by_calls),
        )
        for what, lines in decided:
            if lines:
                if not graph.others and not graph.by_calls:  # the export may know better what is a check only
                    try:
                        return analysed(decided=False)
                    except ModelError:
                        pass
                why = str(error).splitlines()[0].removesuffix(UNTOUCHED)
                raise VerificationError(
                    f"{why}; no graph can take the place of its code, since {what} decide what it "
                    f"computes, {lines[0]}{UNTOUCHED}"
                ) from error
    return found


def _draws(found: CouplingGraph, keeping: KeepMasks, training: bool) -> Draws | None:
    """Random numbers of the whole network in one mode, for the smaller one; None where it draws none."""
    number = min(int(training), len(found.graphs) - 1)
    graph = found.graphs[number]
    # graphs within a graph, which it names, may draw, too
    drawing = any(draws_of(each) or each.named for each in (graph, *graph.others))
    return Draws(graph, number, keeping) if drawing else None
