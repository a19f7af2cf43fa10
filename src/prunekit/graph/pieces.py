"""Taking pieces out of maxout layers, proven to compute what the masked network does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs
from prunekit.errors import InputError
from prunekit.graph.copies import copy_of, masked_copy
from prunekit.graph.proof import masked_reference, proven
from prunekit.graph.shrinking import GroupSize, ShrinkResult, check_examples
from prunekit.graph.surgery import Cut, operate, own_module, smaller_masks
from prunekit.masks import Masks
from prunekit.models import Maxout
from prunekit.targets import count_parameters

_EXAMPLES = 32  # more make the proof slower (float64 is), not stronger


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
    check_examples(example_inputs)
    inputs = pytree.tree_map_only(Tensor, lambda given: given[:_EXAMPLES], example_inputs)
    masks = masks or Masks({})
    groups = tuple(GroupSize(name, flags.numel(), int(flags.sum())) for name, flags in kept.items())
    cut = _cut_of_pieces(model, kept)
    whole = masked_copy(model, masks)
    candidate = copy_of(whole)
    operate(candidate, cut)
    reference = masked_reference(whole, cut.tensors, inputs)
    deviation = proven(reference, candidate, cut, inputs, training=False)
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
