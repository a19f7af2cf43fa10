"""Taking pieces out of maxout layers, in place and with the proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.graph.proof import Reference, proven
from prunekit.graph.shrinking import GroupSize, ShrinkResult
from prunekit.graph.surgery import Cut, count_parameters, masked_copy, operate, own_module, smaller_masks
from prunekit.masks import Masks
from prunekit.maxout import Maxout

_EXAMPLES, _RANDOM = 32, 8  # more make the proof slower (float64 is), not stronger


def checked_examples(example_inputs: Tensor | Sequence[Tensor]) -> Tensor:
    """The first of them, as a batch of real numbers.

    Raises:
        InputError: if they are none.
    """
    if not isinstance(example_inputs, Tensor):
        if len(example_inputs) != 1:
            raise InputError(f"a chain has one input, got {len(example_inputs)} example inputs")
        (example_inputs,) = example_inputs
    if not isinstance(example_inputs, Tensor) or example_inputs.dim() < 2 or not example_inputs.numel():
        raise InputError("example_inputs must be a tensor (N, ...) with at least one example")
    if not example_inputs.is_floating_point():
        raise InputError(f"example_inputs must be real numbers, got {example_inputs.dtype}")
    return example_inputs.detach()[:_EXAMPLES].clone()


@torch.inference_mode(False)  # parameters made in it could not be trained
def shrink_pieces(
    model: nn.Module,
    kept: Mapping[str, Tensor],
    example_inputs: Tensor | Sequence[Tensor],
    *,
    masks: Masks | None = None,
    tolerance: float | None = None,
) -> ShrinkResult:
    """Take removed pieces out of maxout layers in place, if what is left computes what the masked one does.

    Args:
        model: the network.
        kept: by maxout layer, (units, pieces) flags; every unit keeps the same number.
        example_inputs: (N, ...) inputs to prove it on.
        masks: masks of single weights that act on the network.
        tolerance: as in `same_function`.

    Raises:
        InputError: for flags of another shape, or units that keep different numbers of pieces, or none.
        VerificationError: if the smaller network computes something else; the model is untouched then.
    """
    model = own_module(model)
    inputs = checked_examples(example_inputs)
    masks = masks if masks is not None else Masks({})
    groups = []
    for name, flags in kept.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, Maxout):
            raise InputError(f"{name!r} is no maxout layer, it is a {type(layer).__name__}")
        _check(name, layer, flags)
        groups.append(GroupSize(name, flags.numel(), int(flags.sum())))
    cut = cut_of_pieces(model, kept)
    on = dict(masks)
    for name, axes in cut.tensors.items():
        parameter = model.get_parameter(name)
        rows = axes[0].view(-1, *[1] * (parameter.dim() - 1)).to(parameter.device).expand_as(parameter)
        on[name] = on[name] & rows if name in on else rows
    candidate = masked_copy(model, masks)
    operate(candidate, cut)
    deviation = proven(
        Reference(masked_copy(model, Masks(on)), inputs),
        candidate,
        cut.tensors,
        inputs,
        training=False,
        tolerance=tolerance,
        drawn=_RANDOM,
    )
    before = count_parameters(model)
    operate(model, cut, masks)
    return ShrinkResult(
        model,
        "modules",
        tuple(groups),
        before,
        count_parameters(model),
        deviation,
        smaller_masks(masks, cut),
        axes=cut.tensors,
    )


def cut_of_pieces(model: nn.Module, kept: Mapping[str, Tensor]) -> Cut:
    """What stays of the network when flags of pieces, (units, pieces) by maxout layer, are carried out."""
    tensors: dict[str, dict[int, Tensor]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for name, flags in kept.items():
        layer = f"{name}.layer"
        module = model.get_submodule(layer)
        rows = flags.detach().cpu().flatten()
        for short, _ in module.named_parameters(recurse=False):
            tensors[f"{layer}.{short}"] = {0: rows}
        counter = "out_features" if isinstance(module, nn.Linear) else "out_channels"
        sizes[layer, counter] = int(rows.sum())
    return Cut(tensors, sizes)


def _check(name: str, layer: Maxout, flags: Tensor) -> None:
    shape = (layer.units, layer.pieces)
    if flags.dtype != torch.bool or tuple(flags.shape) != shape:
        raise InputError(f"kept[{name!r}] must be {shape} booleans, got {flags.dtype} {tuple(flags.shape)}")
    counts = flags.sum(1)
    if int(counts.min()) < 1 or int(counts.min()) != int(counts.max()):
        raise InputError(
            f"kept[{name!r}] leaves units between {int(counts.min())} and {int(counts.max())} pieces: "
            "all units must keep the same number, at least 1"
        )
