"""Which part of which tensor stays when units go: all that surgery, masks and counts need to know.

An analysis of arbitrary graphs only has to make a `Cut`; nothing behind it asks for a chain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.structure.calls import is_flatten
from prunekit.structure.parts import INPUT, Chain

Axes = Mapping[int, Tensor]
"""For some axes of a tensor, which of their entries stay: a boolean vector each."""


@dataclass(frozen=True)
class Cut:
    """What stays of a network.

    Attributes:
        tensors: for each parameter and buffer that units reach into, by full name, the axes they are on.
        sizes: attributes of modules that count units, by (module, attribute), with their new values.
    """

    tensors: Mapping[str, Axes]
    sizes: Mapping[tuple[str, str], Any]


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
        if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
            raise InputError(f"kept[{name!r}] must be a boolean tensor (True = kept)")
        if tuple(flags.shape) != (group.units,):
            raise InputError(
                f"kept[{name!r}] has shape {tuple(flags.shape)}, the group has {group.units} units"
            )
        if not allow_empty and not bool(flags.any()):
            raise InputError(f"kept[{name!r}] removes all {group.units} units: at least one must stay")
        if group.fixed and removing and not bool(flags.all()):
            raise ModelError(f"the units of {name!r} cannot be taken out: {group.fixed}")
        checked[name] = flags.detach().cpu()
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


def narrow_inputs(chain: Chain, kept: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """The inputs of the network that lost input features, from those of the network before.

    Features are the second dimension of images, and otherwise the numbers that the first linear layer reads,
    so that inputs that the network flattens come out as (N, kept features).
    """
    if INPUT not in kept:
        return inputs
    group, flags = chain.group(INPUT), kept[INPUT].to(inputs.device)
    before, consumer, _ = chain.split(group)
    flatten = next((place for place, stage in enumerate(before) if is_flatten(stage)), None)
    as_images = any(stage.module is not None and stage.name in group.norms for stage in before[:flatten])
    if not isinstance(consumer.module, nn.Linear) or group.repeat > 1 or (as_images and flatten is not None):
        return inputs[:, flags]
    return inputs[..., flags] if flatten is None else inputs.flatten(1)[:, flags]
