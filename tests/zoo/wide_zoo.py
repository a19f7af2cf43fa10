"""The zoo in its width: more than two hundred networks, by the place where their style is from."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from zoo_conv_styles import CONV_STYLES
from zoo_detectors import DETECTORS
from zoo_generators import GENERATORS
from zoo_held_out import HELD_OUT
from zoo_patch_styles import PATCH_STYLES
from zoo_senses import SENSES
from zoo_speech_styles import SPEECH_STYLES
from zoo_table_styles import TABLE_STYLES
from zoo_text import LANGUAGE
from zoo_transformers import TRANSFORMERS
from zoo_word_styles import WORD_STYLES

from prunekit.graph import GroupPlan, ShrinkResult, prune_groups, shrink
from prunekit.graph.capture import tensors_of
from prunekit.graph.l1_pruning import smallest
from zoo import OWN, stirred

PARTS = {
    "the literature": {
        **OWN,
        **PATCH_STYLES,
        **CONV_STYLES,
        **DETECTORS,
        **GENERATORS,
        **SPEECH_STYLES,
        **WORD_STYLES,
        **TABLE_STYLES,
    },
    "transformers": {**TRANSFORMERS, **LANGUAGE, **SENSES},
    "held out": HELD_OUT,
}
WIDE = {name: entry for part in PARTS.values() for name, entry in part.items()}
PART_OF = {name: part for part, entries in PARTS.items() for name in entries}


def lively(model: nn.Module) -> nn.Module:
    """A network whose small weights are made large enough that every part of it changes what comes out.

    The packages begin with weights of 0.02, behind which attention is flat: what is wrong in it would be
    no larger than rounding.
    """
    with torch.no_grad():
        for value in {id(each): each for each in model.parameters()}.values():
            if value.dim() > 1 and value.numel() > 1:
                spread, wanted = float(value.std()), value[0].numel() ** -0.5
                if 0 < spread < 0.5 * wanted:
                    value.mul_(wanted / spread)
    return stirred(model)


def made_wide(name: str) -> tuple[nn.Module, Any]:
    """A network of that name in evaluation mode, and inputs for it."""
    make, inputs = WIDE[name]
    torch.manual_seed(0)
    return lively(make()).eval(), inputs


def halved(name: str, plan: GroupPlan) -> ShrinkResult | None:
    """The network without half of every group whose units no statistics run over; None without such.

    Where statistics do, zeros in the place of units are not what the network computes without them.
    """
    model, inputs = made_wide(name)
    if not any(group.normalised for group in plan.prunable):
        return prune_groups(model, inputs, 0.5)
    kept = {
        each.name: smallest(tensors_of(model), each, 0.5) for each in plan.prunable if not each.normalised
    }
    result = shrink(model, inputs, kept) if kept else None
    if result is None or not result.stayed:
        return result
    for each in result.stayed:  # they are whole, but zero now
        kept.pop(each)
    model, inputs = made_wide(name)
    return shrink(model, inputs, kept) if kept else None
