"""Units of any network that do nothing any more: they can be taken out without a change of the function."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph.capture import Inputs
from prunekit.graph.groups import Group, Plan
from prunekit.graph.members import of_units
from prunekit.graph.plan import traced
from prunekit.graph.proof import run_both
from prunekit.graph.shrinking import ShrinkResult, shrink
from prunekit.graph.surgery import alike, copy_of, unit_masks
from prunekit.masks import Masks
from prunekit.targets import unwrap


def off_units(model: nn.Module, plan: Plan, *, over_units: bool = False) -> dict[str, Tensor]:
    """For each group with units that are off (units,) flags, True = kept; every group keeps some.

    A unit is off if every weight that makes it and everything that goes with it is zero, biases and norms
    included, or if every weight that reads it is.

    Args:
        model: the network.
        plan: its groups.
        over_units: whether groups count in whose norms the statistics run over the units, zeros included: the
            network without such units has those of the kept ones, as with the shape `group`.
    """
    own = {name: parameter.detach() != 0 for name, parameter in unwrap(model).named_parameters()}
    found = {}
    for group in plan.prunable:
        if not group.normalised or over_units:
            kept = _kept(group, own)
            if not bool(kept.all()):
                found[group.name] = kept
    return found


def shrink_off(
    model: nn.Module, example_inputs: Inputs, *, over_units: bool = False, masks: Masks | None = None
) -> ShrinkResult:
    """Take the units that are off out of any network that PyTorch can export, with the proof.

    Of a unit that nothing feeds, a constant may be left, such as the sigmoid of zero. Groups with such units
    are found by comparing, and stay.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        over_units: as in `off_units`.
        masks: of single weights; removed ones are zero already, and the masks get smaller along.

    Raises:
        InputError: as `shrink`.
        ModelError: where no unit is off, or as `shrink`.
        VerificationError: as `shrink`; the model is then as it was.
    """
    model = unwrap(model)
    found = traced(model, example_inputs, residual=True)
    kept = off_units(model, found.plan, over_units=over_units)
    if not _same(model, found.plan, kept, example_inputs):
        kept = {
            name: flags
            for name, flags in kept.items()
            if _same(model, found.plan, {name: flags}, example_inputs)
        }
    if not kept:
        raise ModelError(
            "no unit of this network is off: whatever could be taken out computes something that is read"
        )
    return shrink(model, example_inputs, kept, masks=masks, found=found)


def _kept(group: Group, own: Mapping[str, Tensor]) -> Tensor:
    fed = torch.zeros(group.units, dtype=torch.bool)
    read = torch.zeros(group.units, dtype=torch.bool)
    for member in group.members:
        if member.tensor in own:
            there = of_units(own[member.tensor], member, "max").cpu() > 0  # NaN, where it has none, is not
            if member.role == "consumer":
                read |= there
            else:
                fed |= there
    has_readers = any(member.role == "consumer" and member.tensor in own for member in group.members)
    kept = fed & (read if has_readers else True)
    for units in alike(group):
        if not bool(kept[units].any()):
            kept[units[0]] = True
    return kept


def _same(model: nn.Module, plan: Plan, kept: Mapping[str, Tensor], inputs: Inputs) -> bool:
    """Whether the network computes the same with everything of these units at zero."""
    masked = copy_of(model)
    unit_masks(masked, plan, kept).apply(masked)
    return run_both(model, masked, inputs).accepted
