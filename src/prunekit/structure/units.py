"""Units of a chain that stay: as flags, as a cut, as masks over parameters, and as a number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph.chain import Chain
from prunekit.graph.surgery import Axes, Cut, check_flags, masks_of
from prunekit.masks import Masks
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
    return masks_of(model, cut.tensors)


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


def check_kept(
    chain: Chain, kept: Mapping[str, Tensor], *, allow_empty: bool = False, removing: bool = False
) -> dict[str, Tensor]:
    """The flags of each group on the CPU, checked.

    Args:
        chain: the network's chain.
        kept: for each group that loses units, (units,) boolean flags, True = kept.
        allow_empty: whether a group may lose all its units.
        removing: whether units are to be taken out, which some groups that can be masked do not allow.

    Raises:
        InputError: for an unknown group, or flags that are not boolean, of another length or all False.
        ModelError: for a group that cannot lose units.
    """
    checked: dict[str, Tensor] = {}
    for name, flags in kept.items():
        group = chain.group(name)
        flags = check_flags(name, flags, group.units, allow_empty=allow_empty)
        if group.fixed and removing and not bool(flags.all()):
            raise ModelError(f"the units of {name!r} cannot be taken out: {group.fixed}")
        checked[name] = flags
    return checked


def cut_of(model: nn.Module, chain: Chain, kept: Mapping[str, Tensor]) -> Cut:
    """What stays of the network when the checked flags are carried out."""
    tensors: dict[str, dict[int, Tensor]] = {}
    sizes: dict[tuple[str, str], int] = {}

    def keep(module: str, short: str, axis: int, flags: Tensor) -> None:
        owner = model.get_submodule(module)
        if owner._parameters.get(short) is not None or owner._buffers.get(short) is not None:
            tensors.setdefault(f"{module}.{short}" if module else short, {})[axis] = flags

    for name, flags in kept.items():
        group = chain.group(name)
        if group.producer is not None:
            keep(group.producer, "weight", 0, flags)
            keep(group.producer, "bias", 0, flags)
            sizes[group.producer, _counter(model, group.producer, "out")] = int(flags.sum())
        for norm in group.norms:
            channels = spread(flags, int(model.get_submodule(norm).num_features))  # type: ignore[arg-type]
            for short in ("weight", "bias", "running_mean", "running_var"):
                keep(norm, short, 0, channels)
            sizes[norm, "num_features"] = int(channels.sum())
        columns = flags.repeat_interleave(group.repeat)
        keep(group.consumer, "weight", 1, columns)
        sizes[group.consumer, _counter(model, group.consumer, "in")] = int(columns.sum())
    return Cut(tensors, sizes)


def spread(flags: Tensor, length: int) -> Tensor:
    """Each unit's flag for all its neighbouring entries, `length` in all."""
    return flags.repeat_interleave(length // flags.numel())


def _counter(model: nn.Module, layer: str, side: str) -> str:
    kind = "features" if isinstance(model.get_submodule(layer), nn.Linear) else "channels"
    return f"{side}_{kind}"
