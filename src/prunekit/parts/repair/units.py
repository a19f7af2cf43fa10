"""What the repairs for units have in common: the layer that reads the units is changed, nothing else."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from prunekit.errors import ModelError
from prunekit.graph import Chain, UnitGroup
from prunekit.graph.rows import LAYERS, Layer
from prunekit.parts.base import Level
from prunekit.parts.context import StepContext
from prunekit.parts.repair.weights import Repair
from prunekit.statistics import Found


@dataclass(frozen=True)
class RemovedUnits:
    """The units that one layer is about to lose.

    Attributes:
        group: the units.
        layer: the linear or convolution layer that reads them.
        weight: (outputs, inputs, ...) float64, its weights from before the step.
        mask: of the weights' shape, the weights that stay.
        removed: (units,) flags: on before this step, off after it.
        alive: (units,) flags: on before this step and after it.
    """

    group: UnitGroup
    layer: Layer
    weight: Tensor
    mask: Tensor
    removed: Tensor
    alive: Tensor

    def columns(self, units: Tensor) -> Tensor:
        """(units,) values as (inputs,) values of the layer."""
        return units.repeat_interleave(self.group.repeat)


class UnitRepair(Repair):
    """A repair of the layers that read removed units; the recipe's shape must be `unit`.

    Every layer is repaired for what its inputs were before the step, also where several layers lose units
    in one step: use the order `forward` or small steps for repairs that see the repaired inputs.
    """

    works_on: ClassVar[tuple[Level, ...]] = ("units",)
    needs_bias: ClassVar[bool] = True

    def check(self, model: nn.Module, chain: Chain | None, names: Sequence[str]) -> None:
        """The layers that read the units must have a bias, if one is needed to hold constants.

        Raises:
            ModelError: naming the first layer without.
        """
        if chain is None or not self.needs_bias:
            return
        for name in names:
            consumer = chain.group(name).consumer
            if model.get_submodule(consumer).bias is None:
                raise ModelError(
                    f"the repair {self.name!r} puts what the units of {name!r} lose into the bias of "
                    f"{consumer!r}, which has none: name {name!r} in `ignore`, or use 'least_squares'"
                )

    @torch.no_grad()
    def __call__(self, context: StepContext) -> None:
        """Repair each layer that loses units at this step; what is removed is exactly zero afterwards."""
        if context.coupled is not None:
            self.update_consumers(context)
            context.masks.apply(context.model)
            return
        assert context.chain is not None
        for name, kept in context.kept_after.items():
            removal = _removal(context, context.chain.group(name), context.kept[name], kept)
            if bool(removal.removed.any()):
                self.update(removal, context.statistics)
        context.masks.apply(context.model)

    def update_consumers(self, context: StepContext) -> None:
        """Mend all layers that read coupled units, in a repair that knows how."""
        raise NotImplementedError

    @abstractmethod
    def update(self, removal: RemovedUnits, statistics: Found) -> None:
        """Change the weights and the bias of one layer; masked weights are set to zero by the caller."""


def _removal(context: StepContext, group: UnitGroup, before: Tensor, kept: Tensor) -> RemovedUnits:
    layer = context.model.get_submodule(group.consumer)
    assert isinstance(layer, LAYERS)
    weight = layer.weight.detach().double()
    mask = context.masks[f"{group.consumer}.weight"].to(weight.device)
    before, kept = before.to(weight.device), kept.to(weight.device)
    return RemovedUnits(group, layer, weight, mask, before & ~kept, before & kept)


def mean_output(layer: Layer, weight: Tensor, mean: Tensor) -> Tensor:
    """(outputs,) the mean over positions of what the layer makes of its mean input with other weights.

    The layer is linear but for its bias, so this is its mean output; the positions that read zero padding
    count as they are.

    Args:
        layer: a linear or convolution layer; its bias is left out.
        weight: (outputs, inputs, ...) float64.
        mean: its mean input without the dimension of examples, float64.
    """
    # a tensor, not None: `functional_call` then replaces the bias for the length of the call
    swapped = {"weight": weight}
    if layer.bias is not None:
        swapped["bias"] = weight.new_zeros(len(weight))
    found: Tensor = functional_call(layer, swapped, (mean.unsqueeze(0),))
    outputs = found.movedim(-1 if isinstance(layer, nn.Linear) else 1, -1)
    return outputs.flatten(0, -2).mean(0)


def shift_bias(layer: Layer, by: Tensor) -> None:
    """Add to a layer's bias, computed in float64."""
    assert layer.bias is not None
    layer.bias.copy_(layer.bias.double() + by)
