"""Pruning without training: of every group of units the share with the least L1 norm goes."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph.capture import tensors_of
from prunekit.graph.groups import CouplingGraph, Group
from prunekit.graph.members import l1_norms
from prunekit.graph.plan import KINDS, traced
from prunekit.graph.shrinking import Case, Form, ShrinkResult, check_examples, taken_out
from prunekit.graph.surgery import alike, checked, own_module
from prunekit.masks import Masks
from prunekit.targets import unwrap


def smallest(tensors: Mapping[str, Tensor], group: Group, share: float, round_to: int = 1) -> Tensor:
    """Flags of a group without its units of the least L1 norm over what makes them; ties by place.

    The share is taken of all units that reach into the same tensors, so that none is left without;
    what stays of them is a multiple of `round_to`, or all.

    Li et al. 2017, Pruning filters for efficient ConvNets, arXiv 1608.08710.
    """
    norms = l1_norms(tensors, group)
    flags = torch.ones(group.units, dtype=torch.bool)
    for units in alike(group):
        left = max(len(units) - int(len(units) * share), 1)
        count = max(len(units) - math.ceil(left / round_to) * round_to, 0)
        order = norms[units].argsort(stable=True)[:count]
        flags[torch.tensor(units)[order]] = False
    return flags


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
    model = own_module(model)
    check_examples(example_inputs)
    case = Case(model, example_inputs, masks or Masks({}))

    def again(inputs: Inputs = example_inputs, *, decided: bool = True) -> CouplingGraph:
        return traced(model, inputs, ignore=ignore, residual=residual, decided=decided)

    flags = checked(found.plan, kept)
    result = taken_out(case, found, flags, form=form, analysed=again, whole=True)
    return replace(result, seconds=(analysis, *result.seconds[1:]))
