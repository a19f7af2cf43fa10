"""The layers that read units, and which of their inputs each unit is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph import Coupled, Member
from prunekit.graph.members import entries
from prunekit.graph.rows import TRANSPOSED, groups_of, inputs_first, row_layers, rows_of


@dataclass(frozen=True)
class Consumer:
    """A layer that reads units: a linear layer or a convolution, also a transposed one.

    Attributes:
        name: the layer's full name.
        layer: it.
        units: by group of units (groups, inputs) int64: of each input of each of the layer's groups, the
            unit that it belongs to, -1 for none.
    """

    name: str
    layer: nn.Module
    units: dict[str, Tensor] = field(default_factory=dict)

    @property
    def weight(self) -> str:
        """The full name of its weight."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def kernel(self) -> int:
        """How many columns of its rows belong to one input."""
        return cast(Tensor, self.layer.weight).shape[2:].numel()

    def rows(self) -> Tensor:
        """(groups, rows, columns) float64, its weights; see `rows_of`."""
        return rows_of(cast(Tensor, self.layer.weight).detach(), self.layer).double()

    def columns(self, values: Tensor) -> Tensor:
        """(groups, columns) from (groups, inputs): of each column what its input has."""
        return values.repeat_interleave(self.kernel, 1)


def consumers(coupled: Coupled | None, names: Collection[str] = ()) -> dict[str, Consumer]:
    """The layers that read units, by the names of their weights.

    Args:
        coupled: the groups whose units are counted.
        names: of the groups of units; none for all.

    Raises:
        InputError: where no units are counted.
        ModelError: naming a layer that reads units and is neither linear nor a convolution.
    """
    if coupled is None:
        raise InputError("this looks at the layers that read units: give the recipe the granularity 'unit'")
    own = {name for name, _ in coupled.model.named_parameters()}
    reading = [
        (group.name, member)
        for group in coupled.groups
        if not names or group.name in names
        for member in group.members
        if member.role == "consumer" and member.tensor in own
    ]
    layers = row_layers(coupled.model, [member.tensor for _, member in reading], transposed=True)
    found: dict[str, Consumer] = {}
    for name, member in reading:
        layer = layers[member.tensor]
        consumer = found.setdefault(member.tensor, Consumer(member.tensor.rpartition(".")[0], layer))
        consumer.units[name] = _units(member, layer)
    return found


def _units(member: Member, layer: Any) -> Tensor:
    """(groups, inputs): see `Consumer`."""
    if member.dim != (0 if inputs_first(layer) or isinstance(layer, TRANSPOSED) else 1):
        raise ModelError(f"{member.tensor} reads units along its outputs, where nothing is known of them")
    index, unit = entries(member)
    weight, groups = layer.weight, groups_of(layer)
    found = torch.full((weight.shape[member.dim],), -1, device=weight.device)
    found[index.to(weight.device)] = unit.to(weight.device)
    # a convolution's groups have each their own outputs, and their inputs along one and the same axis
    inputs = weight.shape[member.dim] // groups if isinstance(layer, TRANSPOSED) else len(found)
    return found.view(-1, inputs).expand(groups, inputs)
