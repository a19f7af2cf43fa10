"""Pruning without training: of every group of units the share with the least L1 norm goes."""

from __future__ import annotations

import math
import numbers
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError, shown
from prunekit.garbage import old_objects_left_alone
from prunekit.graph.capture import tensors_of
from prunekit.graph.coupling_graph import CouplingGraph, Group
from prunekit.graph.members import l1_norms
from prunekit.graph.plan import KINDS, traced
from prunekit.graph.shrinking import Case, Form, ShrinkResult, check_examples, taken_out
from prunekit.graph.surgery import alike, checked, own_module
from prunekit.masks import Masks
from prunekit.targets import check_whole, unwrap


def units_left(sizes: Sequence[int], share: float, round_to: int = 1) -> list[int]:
    """How many of each set of a group's units stay without that share, at least one.

    With `round_to`, what stays of each set is a multiple of it, or the whole set; where these do not add up
    to a multiple, what stays of the group is one instead, or the whole group, and the largest sets keep more.
    Sets of 4 and 28 lose half at multiples of 8: 4 and 16 would make 20, so that 2 and 14 stay.
    """
    asked = [max(size - int(size * share), 1) for size in sizes]
    left = [min(size, math.ceil(stay / round_to) * round_to) for size, stay in zip(sizes, asked, strict=True)]
    if sum(left) % round_to == 0 or left == list(sizes):
        return left
    more = min(math.ceil(sum(asked) / round_to) * round_to, sum(sizes)) - sum(asked)
    for number in sorted(range(len(sizes)), key=lambda number: -sizes[number]):
        extra = min(more, sizes[number] - asked[number])
        asked[number] += extra
        more -= extra
    return asked


def smallest(tensors: Mapping[str, Tensor], group: Group, share: float, round_to: int = 1) -> Tensor:
    """Flags of a group without its units of the least L1 norm over what makes them; ties by place.

    The share is taken of all units that reach into the same tensors, so that none is left without;
    `units_left` says how many stay.

    Li et al. 2017, Pruning filters for efficient ConvNets, arXiv 1608.08710.
    """
    norms = l1_norms(tensors, group)
    flags = torch.ones(group.units, dtype=torch.bool)
    sets = alike(group)
    for units, left in zip(sets, units_left([len(each) for each in sets], share, round_to), strict=True):
        order = norms[units].argsort(stable=True)[: len(units) - left]
        flags[torch.tensor(units)[order]] = False
    return flags


@old_objects_left_alone()
@torch.inference_mode(False)  # parameters made in it could not be trained
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
    form: Form = "modules",
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
        form: what is preferred where the classes' own code cannot do without the units of some groups:
            "modules" for the network with these groups whole (see `stayed` of the result), or "graph" for a
            graph without them. Where nothing else could go, it is a graph in either case.

    Raises:
        InputError: for a sparsity out of its range, an unknown kind, or as `shrink`.
        ModelError: where nothing can be pruned, with the reasons, or as `shrink`.
    """
    if not isinstance(sparsity, numbers.Real) or not 0 <= sparsity < 1:
        raise InputError(f"sparsity must be in [0, 1), got {shown(sparsity)}")
    if not isinstance(round_to, numbers.Integral) or round_to < 1:
        raise InputError(f"round_to must be at least 1, got {shown(round_to)}")
    unknown = [kind for kind in kinds or () if kind not in KINDS]
    if unknown:
        raise InputError(f"no groups are of the kind {unknown[0]!r}; kinds are: {', '.join(KINDS)}")
    model = own_module(unwrap(model))
    check_whole(model)
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
    check_examples(example_inputs)
    case = Case(model, example_inputs, masks or Masks({}))

    def again(inputs: Inputs = example_inputs, *, decided: bool = True) -> CouplingGraph:
        return traced(model, inputs, ignore=ignore, residual=residual, decided=decided)

    flags = checked(found.plan, kept)
    result = taken_out(case, found, flags, form=form, analysed=again, whole=True)
    return replace(result, seconds=(analysis, *result.seconds[1:]))
