"""Taking filter shapes out of convolutions: layers that multiply with fewer columns, proven on outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunekit.batches import Inputs
from prunekit.errors import InputError, ModelError
from prunekit.graph.copies import copy_of, masked_copy
from prunekit.graph.dead_units import shrink_dead
from prunekit.graph.proof import UNTOUCHED, same_function
from prunekit.graph.reference_run import VerificationError
from prunekit.graph.shrinking import GroupSize, ShrinkResult
from prunekit.graph.surgery import own_module, put_modules
from prunekit.masks import Masks
from prunekit.models import ColumnConv2d
from prunekit.targets import count_parameters


def shrink_columns(model: nn.Module, example_inputs: Inputs, masks: Masks) -> ShrinkResult:
    """Take the columns that masks remove whole out of the convolutions, in place, if that computes the same.

    Each convolution that has lost some becomes a `ColumnConv2d`, a new layer with new parameters. Units that
    died of it, such as filters of the layer before that nothing reads any more, are taken out first, where
    PyTorch can export the network. Compared are outputs with those of the masked network, on the example
    inputs and on random ones.

    Args:
        model: the network.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        masks: of the weights of convolutions.

    Returns:
        What was taken out: units by the name of their group, columns by that of the weight.

    Raises:
        InputError: if no column was removed, or all of a layer's were.
        ModelError: naming a layer that is no plain `nn.Conv2d`.
        VerificationError: if the smaller network computes something else. In every case the model is as it
            was.
    """
    model = own_module(model)
    masks.parameters(model)
    columns = _columns_of(masks)
    if not columns:
        raise InputError("no filter shape was removed, so there is nothing to take out")
    masked = masked_copy(model, masks)
    replace_convolutions(copy_of(masked), columns)  # refuses what cannot be done before anything is taken out
    without = copy_of(masked)
    dead = _without_dead(without, example_inputs, masks)
    left = masks if dead is None else dead.masks
    columns = _columns_of(left)
    small = copy_of(without)
    replace_convolutions(small, columns)
    random = pytree.tree_map_only(Tensor, _drawn, example_inputs)
    for inputs in (random, example_inputs):
        deviation = same_function(without, small, inputs)
        if not deviation.accepted:
            raise VerificationError(
                f"the smaller network computes something else than the masked one: {deviation}{UNTOUCHED}"
            )
    before = count_parameters(model)
    masks.apply(model)
    if dead is not None:
        dead = shrink_dead(model, example_inputs, masks=masks)
    replace_convolutions(model, columns)
    sizes = tuple(
        GroupSize(f"{place}.weight", left[f"{place}.weight"][0].numel(), len(kept))
        for place, kept in columns.items()
    )
    fewer = {
        f"{place}.weight": left[f"{place}.weight"].flatten(1)[:, kept] for place, kept in columns.items()
    }
    return ShrinkResult(
        model,
        "modules",
        (() if dead is None else dead.groups) + sizes,
        before,
        count_parameters(model),
        deviation if dead is None else max(deviation, dead.deviation, key=lambda each: each.relative),
        left.replace(fewer),
        axes={} if dead is None else dead.axes,
    )


def _columns_of(masks: Masks) -> dict[str, Tensor]:
    """By layer, the columns that are left, of those that have lost some."""
    columns: dict[str, Tensor] = {}
    for name, mask in masks.items():
        kept = mask.any(0).flatten()
        if not bool(kept.any()):
            raise InputError(f"{name} has lost all its columns: at least one must stay")
        if not bool(kept.all()):
            columns[name.rpartition(".")[0]] = kept.nonzero().flatten()
    return columns


def _without_dead(model: nn.Module, example_inputs: Inputs, masks: Masks) -> ShrinkResult | None:
    """Take the dead units out of a network, in place; None, and nothing done, where there are none or it
    cannot be analysed, or would become a graph."""
    try:
        result = shrink_dead(model, example_inputs, masks=masks)
    except (ModelError, VerificationError):
        return None
    return result if result.lost and result.form == "modules" else None


def replace_convolutions(model: nn.Module, columns: Mapping[str, Tensor]) -> Callable[[], None]:
    """Put layers with some columns in the places of convolutions.

    Args:
        model: the network, which is changed.
        columns: by the full name of the layer, (columns,) ascending positions of those that stay.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: naming a layer that is no plain `nn.Conv2d`, one that shares its weight with another, or
            columns that it does not have; the network is as it was.
    """
    every = list(model.named_modules(remove_duplicate=False))
    owners: dict[int, set[int]] = {}
    for _, module in every:
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), set()).add(id(module))
    made: dict[int, ColumnConv2d] = {}
    for place, kept in columns.items():
        if not place:
            raise ModelError("the model is a single convolution: put it into an nn.Sequential")
        conv = model.get_submodule(place)
        if type(conv) is not nn.Conv2d or conv.groups != 1:
            kind = f"{type(conv).__name__}{' with groups' if getattr(conv, 'groups', 1) != 1 else ''}"
            raise ModelError(
                f"{place} is a {kind}: filter shapes are taken out of plain nn.Conv2d layers only"
            )
        if len(owners[id(conv.weight)]) > 1:
            raise ModelError(f"{place} shares its weight with another layer: name both in `ignore`")
        whole = conv.weight[0].numel()
        if (
            kept.dim() != 1
            or kept.dtype != torch.int64
            or not 0 < len(kept) <= whole
            or not 0 <= int(kept[0]) <= int(kept[-1]) < whole
            or bool((kept.diff() <= 0).any())
        ):
            raise ModelError(f"{place} has {whole} columns, which are not those that are to stay")
        made[id(conv)] = ColumnConv2d(conv, kept)
    before = [(name, module) for name, module in every if id(module) in made]
    return put_modules(model, {name: made[id(module)] for name, module in before})


def _drawn(given: Tensor) -> Tensor:
    """Random numbers in place of real ones; others stay."""
    if not given.is_floating_point():
        return given
    drawn = torch.randn(given.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return drawn.to(given)
