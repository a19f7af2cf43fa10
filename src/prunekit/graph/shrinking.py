"""Taking units, or pieces of maxout layers, out of a network, proven to compute what the masked one does."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs, arguments
from prunekit.errors import InputError, ModelError
from prunekit.graph.capture import takes, tensors_of
from prunekit.graph.captured import GraphModel
from prunekit.graph.draws import Draws
from prunekit.graph.groups import INPUT, CouplingGraph, Group, KeepMasks
from prunekit.graph.members import entries
from prunekit.graph.plan import KINDS, traced
from prunekit.graph.proof import UNTOUCHED, masked_reference, proven, run_both
from prunekit.graph.reference_run import Deviation, VerificationError
from prunekit.graph.surgery import (
    Axes,
    Cut,
    alike,
    checked,
    copy_of,
    count_parameters,
    divisors_of,
    masked_copy,
    operate,
    operation,
    own_module,
    smaller_masks,
)
from prunekit.masks import Masks
from prunekit.models import Maxout
from prunekit.modes import holding
from prunekit.targets import unwrap

_EXAMPLES = 32  # more make the proof slower (float64 is), not stronger


@dataclass(frozen=True)
class GroupSize:
    """How many units a group had and has."""

    name: str
    before: int
    after: int


@dataclass(frozen=True)
class ShrinkResult:
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
        seconds: of the processor for the analysis, the surgery and the proof, where they were taken.
        axes: what stays of each parameter and buffer that lost entries.
    """

    model: nn.Module
    form: Literal["modules", "graph"]
    groups: tuple[GroupSize, ...]
    parameters_before: int
    parameters_after: int
    deviation: Deviation
    masks: Masks = field(default_factory=lambda: Masks({}))
    kept_inputs: Tensor | None = None
    reason: str = ""
    seconds: tuple[float, float, float] = (0.0, 0.0, 0.0)
    axes: Mapping[str, Axes] = field(default_factory=dict)

    @property
    def lost(self) -> tuple[GroupSize, ...]:
        """The groups that lost units."""
        return tuple(group for group in self.groups if group.after < group.before)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the network, as plain JSON values."""
        return {
            "form": self.form,
            "reason": self.reason,
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
        lines.append(f"same function: largest relative difference {self.deviation.relative:.1e}")
        return "\n".join(lines)


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

    Raises:
        InputError: for an unknown group, flags that are not boolean or of another length, or where nothing
            would be left of a tensor; for masks of another model.
        ModelError: where the network cannot be exported, a group is frozen, or it is wrapped for distributed
            training.
        VerificationError: if the networks differ. In every case the model is exactly as it was.
    """
    model = own_module(model)
    _check_examples(example_inputs)
    masks = masks or Masks({})
    times = [time.process_time()]

    def analysed() -> CouplingGraph:
        return traced(model, example_inputs, ignore=ignore, residual=residual, inputs=INPUT in kept)

    found = found or analysed()
    flags = checked(found.plan, kept)
    over_units = any(found.plan.group(name).normalised for name in flags)
    if over_units and not takes(found.graphs[0], example_inputs):
        found = analysed()  # the graphs will be run, which are made for inputs of one shape
    times.append(time.process_time())
    work = operation(model, found, flags)
    whole = masked_copy(model, masks) if masks else model
    candidate = copy_of(whole)
    operate(candidate, work.cut, values=values)
    times.append(time.process_time())
    tensors = work.cut.tensors
    masked, keeping = whole, None
    if over_units:
        masked, keeping = GraphModel(copy_of(whole), found.graphs), work.keeping
        exported = run_both(whole, masked, example_inputs)
        if not exported.accepted:
            raise VerificationError(f"what was exported is not what the network computes: {exported}")
    divisors = divisors_of(found.plan)
    off = {name: axes for name, axes in tensors.items() if values is None and name not in divisors}
    reference = masked_reference(masked, off, example_inputs, keeping)
    narrow = None
    if INPUT in flags:
        assert found.features is not None
        narrow = partial(found.features.narrowed, kept=flags[INPUT])
    prove = partial(
        proven,
        reference,
        tensors=tensors,
        inputs=example_inputs,
        training=training and len(found.graphs) > 1,  # one graph computes the same in both modes
        tolerance=tolerance,
        narrow=narrow,
        draws=partial(_draws, found, work.keeping),
    )
    before = count_parameters(model)
    reason: str = ""
    form: Literal["modules", "graph"] = "modules"
    try:
        with holding(model):  # hooks of the copies may write to what the network itself holds
            deviation = prove(candidate)
        operate(model, work.cut, masks, values)
        result = model
    except VerificationError as error:
        _check_decided(found, error)
        if not takes(found.graphs[0], example_inputs):
            found = analysed()
            work = operation(model, found, flags)
        reason, form = str(error).splitlines()[0].removesuffix(UNTOUCHED), "graph"
        result = GraphModel(candidate, work.graphs)
        with holding(model):
            deviation = prove(result)
    times.append(time.process_time())
    return ShrinkResult(
        result,
        form,
        tuple(GroupSize(name, found.plan.group(name).units, int(each.sum())) for name, each in flags.items()),
        before,
        count_parameters(result),
        deviation,
        smaller_masks(masks, work.cut),
        flags[INPUT].nonzero().flatten() if INPUT in flags else None,
        reason,
        (times[1] - times[0], times[2] - times[1], times[3] - times[2]),
        work.cut.tensors,
    )


def _check_decided(found: CouplingGraph, error: VerificationError) -> None:
    """Raise where no graph can take the place of the network's own code, since values decide what it does."""
    for graph in found.graphs:
        for what, lines in (("the inputs", graph.by_data), ("its tensors", graph.by_state)):
            if lines:
                why = str(error).splitlines()[0].removesuffix(UNTOUCHED)
                raise VerificationError(
                    f"{why}; no graph can take the place of its code, since values of {what} decide what it "
                    f"computes, {lines[0]}{UNTOUCHED}"
                ) from error


def _draws(found: CouplingGraph, keeping: KeepMasks, training: bool) -> Draws:
    """Random numbers of the whole network in one mode, for the smaller one."""
    number = min(int(training), len(found.graphs) - 1)
    return Draws(found.graphs[number], number, keeping)


def _check_examples(example_inputs: Inputs) -> None:
    tensors = [each for each in pytree.tree_leaves(arguments(example_inputs)) if isinstance(each, Tensor)]
    if not all(each.numel() for each in tensors):
        raise InputError("example_inputs must have at least one example")


@torch.inference_mode(False)  # parameters made in it could not be trained
def shrink_pieces(
    model: nn.Module,
    example_inputs: Inputs,
    kept: Mapping[str, Tensor],
    *,
    masks: Masks | None = None,
) -> ShrinkResult:
    """Take pieces out of maxout layers, in place, if what is left computes what the masked network does.

    Args:
        model: the network.
        example_inputs: as of `shrink`; the first 32 are looked at.
        kept: by maxout layer, (units, pieces) flags; every unit keeps the same number.
        masks: of single weights; removed ones are set to zero.

    Raises:
        InputError: for flags of another shape, or units that keep different numbers of pieces, or none.
        VerificationError: if the smaller network computes something else; the model is untouched then.
    """
    model = own_module(model)
    _check_examples(example_inputs)
    inputs = pytree.tree_map_only(Tensor, lambda given: given[:_EXAMPLES], example_inputs)
    masks = masks or Masks({})
    groups = tuple(GroupSize(name, flags.numel(), int(flags.sum())) for name, flags in kept.items())
    cut = _cut_of_pieces(model, kept)
    whole = masked_copy(model, masks)
    candidate = copy_of(whole)
    operate(candidate, cut)
    reference = masked_reference(whole, cut.tensors, inputs)
    deviation = proven(reference, candidate, cut.tensors, inputs, training=False)
    before = count_parameters(model)
    operate(model, cut, masks)
    after, left = count_parameters(model), smaller_masks(masks, cut)
    return ShrinkResult(model, "modules", groups, before, after, deviation, left, axes=cut.tensors)


def _cut_of_pieces(model: nn.Module, kept: Mapping[str, Tensor]) -> Cut:
    """What stays of the network when flags of pieces, (units, pieces) by maxout layer, are carried out."""
    tensors: dict[str, dict[int, Tensor]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for name, flags in kept.items():
        maxout = model.get_submodule(name)
        if not isinstance(maxout, Maxout):
            raise InputError(f"{name!r} is no maxout layer, it is a {type(maxout).__name__}")
        _check_pieces(name, maxout, flags)
        rows = flags.detach().cpu().flatten()
        for short, _ in maxout.layer.named_parameters():
            tensors[f"{name}.layer.{short}"] = {0: rows}
        counter = "out_features" if isinstance(maxout.layer, nn.Linear) else "out_channels"
        sizes[f"{name}.layer", counter] = int(rows.sum())
    return Cut(tensors, sizes)


def _check_pieces(name: str, layer: Maxout, flags: Tensor) -> None:
    shape = (layer.units, layer.pieces)
    if flags.dtype != torch.bool or tuple(flags.shape) != shape:
        raise InputError(f"kept[{name!r}] must be {shape} booleans, got {flags.dtype} {tuple(flags.shape)}")
    counts = flags.sum(1)
    if int(counts.min()) < 1 or int(counts.min()) != int(counts.max()):
        raise InputError(
            f"kept[{name!r}] leaves units between {int(counts.min())} and {int(counts.max())} pieces: "
            "all units must keep the same number, at least 1"
        )


def smallest(tensors: Mapping[str, Tensor], group: Group, share: float, round_to: int = 1) -> Tensor:
    """Flags of a group without its units of the least L1 norm over what makes them; ties by place.

    The share is taken of all units that reach into the same tensors, so that none is left without;
    what stays of them is a multiple of `round_to`, or all.

    Li et al. 2017, Pruning filters for efficient ConvNets, arXiv 1608.08710.
    """
    norms = torch.zeros(group.units, dtype=torch.float64)
    for member in group.members:
        if member.role == "producer":
            tensor = tensors[member.tensor].detach().unsqueeze(-1)
            others = [dim for dim in range(tensor.dim()) if dim != member.dim]
            # in the weights' own precision, which takes a fifth of the time of `of_units`
            exactly = torch.promote_types(tensor.dtype, torch.float32)
            each = tensor.abs().sum(others, dtype=exactly).double().cpu()
            if not bool(each.isfinite().all()):
                raise ModelError(f"{member.tensor} has weights that are no finite numbers")
            index, unit = entries(member)
            norms.index_add_(0, unit, each[index])
    flags = torch.ones(group.units, dtype=torch.bool)
    for units in alike(group):
        left = max(len(units) - int(len(units) * share), 1)
        count = max(len(units) - math.ceil(left / round_to) * round_to, 0)
        order = norms[units].argsort(stable=True)[:count]
        flags[torch.tensor(units)[order]] = False
    return flags


def prune_groups(
    model: nn.Module,
    example_inputs: Inputs,
    sparsity: float,
    *,
    kinds: Collection[str] | None = None,
    ignore: Sequence[str] = (),
    residual: bool = False,
    round_to: int = 1,
    masks: Masks | None = None,
) -> ShrinkResult:
    """Take that share of the units out of every group that can lose some, the least by L1 norm first.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        sparsity: the share in [0, 1); of each group at least one unit stays.
        kinds: of the groups to prune, such as "filters" and "heads"; None for all.
        ignore: names or patterns of what may not change.
        residual: whether the widths of residual streams can be pruned.
        round_to: what stays of a group is a multiple of it, where the group is not smaller.
        masks: of single weights; removed ones are set to zero.

    Raises:
        InputError: for a sparsity out of its range, an unknown kind, or as `shrink`.
        ModelError: where nothing can be pruned, with the reasons, or as `shrink`.
    """
    if not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), got {sparsity}")
    if round_to < 1:
        raise InputError(f"round_to must be at least 1, got {round_to}")
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise InputError(f"no groups are of the kind {unknown[0]!r}; kinds are: {', '.join(KINDS)}")
    model = unwrap(model)
    start = time.process_time()
    found = traced(model, example_inputs, ignore=ignore, residual=residual)
    analysis = time.process_time() - start
    chosen = [group for group in found.plan.prunable if kinds is None or group.kind in kinds]
    if not chosen and found.plan.prunable:
        there = ", ".join(dict.fromkeys(group.kind for group in found.plan.prunable))
        raise ModelError(
            f"no group of the kind {' or '.join(kinds or ())} can be pruned in this network, but {there} can"
        )
    if not chosen:
        reasons = "; ".join(f"{name}: {why}" for name, why in found.plan.frozen.items())
        raise ModelError(f"nothing of this network can be pruned: {reasons or 'it has no layers'}")
    tensors = tensors_of(model)
    kept = {group.name: smallest(tensors, group, sparsity, round_to) for group in chosen}
    result = shrink(model, example_inputs, kept, masks=masks, found=found)
    return replace(result, seconds=(analysis, *result.seconds[1:]))
