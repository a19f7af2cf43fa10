"""Units that stay: as flags, as masks over parameters, and as a number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from prunekit.masks import Masks
from prunekit.structure.cut import Axes, check_kept, cut_of
from prunekit.structure.parts import Chain
from prunekit.targets import unwrap


def kept_all(chain: Chain) -> dict[str, Tensor]:
    """For each group, (units,) flags that keep every unit."""
    return {group.name: torch.ones(group.units, dtype=torch.bool) for group in chain.groups}


def unit_masks(
    model: nn.Module, chain: Chain, kept: Mapping[str, Tensor], *, allow_empty: bool = False
) -> Masks:
    """Masks with which every removed unit is off: exactly zero arrives at the layer that reads it.

    Masked are the unit's row and bias in the layer that makes it, its entries in the batch norms on the way,
    and, which is what counts, its columns in the layer that reads it.

    Args:
        model: the network.
        chain: its chain.
        kept: for each group that loses units, (units,) boolean flags, True = kept; others are not masked.
        allow_empty: whether a group may lose all its units.

    Returns:
        One mask for each parameter that a named group reaches into, on the parameter's device.

    Raises:
        InputError: for an unknown group, or flags that are not boolean, of another length or all False.
        ModelError: for a group that cannot lose units.
    """
    model = unwrap(model)
    cut = cut_of(model, chain, check_kept(chain, kept, allow_empty=allow_empty))
    parameters = dict(model.named_parameters())
    return Masks(
        {
            name: outer(tuple(parameters[name].shape), axes).to(parameters[name].device)
            for name, axes in cut.tensors.items()
            if name in parameters
        }
    )


def parameters_after(
    model: nn.Module, chain: Chain, kept: Mapping[str, Tensor], *, allow_empty: bool = False
) -> int:
    """How many parameters the network has once the units are taken out; nothing is changed for it.

    Raises:
        InputError, ModelError: as `unit_masks`.
    """
    model = unwrap(model)
    cut = cut_of(model, chain, check_kept(chain, kept, allow_empty=allow_empty))
    return sum(
        _count(tuple(parameter.shape), cut.tensors.get(name, {}))
        for name, parameter in model.named_parameters()
    )


def _count(shape: tuple[int, ...], axes: Axes) -> int:
    return prod(int(axes[axis].sum()) if axis in axes else size for axis, size in enumerate(shape))


def outer(shape: tuple[int, ...], axes: Axes) -> Tensor:
    """A mask of this shape that keeps what stays along all axes."""
    mask = torch.ones(shape, dtype=torch.bool)
    for axis, flags in axes.items():
        mask &= flags.view([-1 if place == axis else 1 for place in range(len(shape))])
    return mask
