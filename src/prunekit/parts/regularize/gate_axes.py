"""Where gates stand: along which entries of which parameters, and what is counted of those that are open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph import Coupled, Group
from prunekit.graph.members import entries
from prunekit.measure.counts import count
from prunekit.targets import owner_of

Counted = Literal["gates", "positions", "parameters", "macs"]
"""What a share is of: the gates themselves, each once or as often as its unit has positions; or the
parameters or MACs that the open ones leave."""


@dataclass(frozen=True, eq=False)
class Axis:
    """Entries along one dimension of a parameter that have gates.

    Attributes:
        place: of the group, among all.
        dim: the dimension.
        gates: (entries,) int64, the gate of each entry; -1 for none.
    """

    place: int
    dim: int
    gates: Tensor

    def along(self, values: Tensor, dims: int) -> Tensor:
        """The group's values, 1 for entries without a gate, in the shape that multiplies.

        Args:
            values: (gates,), or (examples, gates) along the first dimension.
            dims: of what is multiplied.
        """
        every = torch.cat([values, values.new_ones(*values.shape[:-1], 1)], -1)
        shape = [-1 if dim == self.dim else 1 for dim in range(dims)]
        if values.dim() == 2:
            shape[0] = len(values)
        return every[..., self.gates.to(values.device)].view(shape)


def places_of(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Every place of these parameters, by one of its full names: the one of a tied weight that is given."""
    wanted = {id(model.get_parameter(name)): name for name in names}
    found: dict[tuple[int, str], tuple[str, str]] = {}
    for place, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in wanted:
            owner, own = owner_of(model, place), place.rpartition(".")[2]
            found.setdefault((id(owner), own), (place, wanted[id(parameter)]))
    return dict(found.values())


def running(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """The modules that read these parameters when they run: their owners and all that these are inside of."""
    paths = [name.split(".")[:-1] for name in names]
    inside = {".".join(path[:end]) for path in paths for end in range(len(path) + 1)}
    return list(dict.fromkeys(model.get_submodule(name) for name in sorted(inside)))


def inputs_with_units(who: str, coupled: Coupled, read: Mapping[str, Any]) -> dict[str, list[Axis]]:
    """By layer the axes of what it takes that have units.

    Raises:
        ModelError: where a parameter reads units, but not as a layer of its own, called on them alone.
    """
    found: dict[str, list[Axis]] = {}
    for place, group in enumerate(coupled.groups):
        if group.normalised:
            raise ModelError(
                f"{who}: {group.normalised[0]!r} takes statistics over the units of {group.name!r}, which "
                "noise on what is read behind it does not change: set 'noise' to 'batch'"
            )
        for each in coupled.inputs(group):
            axis = Axis(place, each.axis, each.units)
            own = found.setdefault(each.module, [])
            if each.axis == 0 or any(
                one.place == place and not (one.dim == axis.dim and one.gates.equal(axis.gates))
                for one in own
            ):
                raise _no_examples(who, each.module)
            if all(one.place != place for one in own):
                own.append(axis)
    for name, axes in read.items():
        owner = name.rpartition(".")[0]
        if not {axis.place for axis in axes} <= {axis.place for axis in found.get(owner, ())}:
            raise _no_examples(who, owner)
    return found


def _no_examples(who: str, layer: str) -> ModelError:
    return ModelError(
        f"{who}: the layer {layer!r} is not called by itself on a batch of examples whose units lie along "
        "one other axis, so examples cannot have noise of their own: set 'noise' to 'batch'"
    )


def axis_of(place: int, member: Any, size: int) -> Axis:
    """The axis of a group's member in a parameter of so many entries there."""
    index, unit = entries(member)
    gates = torch.full((size,), -1)
    gates[index] = unit
    return Axis(place, member.dim, gates)


def _positions(coupled: Coupled, group: Group, macs: Mapping[str, float]) -> float:
    """How often a unit of a group is computed for an example: the MACs of what makes it over its weights."""
    parameters = dict(coupled.model.named_parameters())
    for member in group.producers:
        owner = member.tensor.rpartition(".")[0]
        if macs.get(owner) and member.tensor in parameters and parameters[member.tensor].dim() > 1:
            return macs[owner] / parameters[member.tensor].numel()
    return 1.0


def costs(coupled: Coupled, counts: Counted) -> list[tuple[float, list[Axis], list[int]]]:
    """Of each parameter what it costs whole, the axes along which it gets smaller, and their lengths."""
    model = coupled.model
    layers: dict[str, float] = {}
    if counts != "parameters":
        layers = {each.name: float(each.macs) for each in count(model, coupled.example_inputs).layers}
    if counts == "positions":
        return [
            (_positions(coupled, group, layers) * group.units, [every], [group.units])
            for place, group in enumerate(coupled.groups)
            for every in [Axis(place, 0, torch.arange(group.units))]
        ]
    axes: dict[str, list[Axis]] = {}
    parameters = dict(model.named_parameters())
    for place, group in enumerate(coupled.groups):
        for member in group.members:
            if member.tensor in parameters:
                size = parameters[member.tensor].shape[member.dim]
                axes.setdefault(member.tensor, []).append(axis_of(place, member, size))
    found = []
    for name, parameter in parameters.items():
        cost = float(parameter.numel())
        if counts == "macs":
            is_weight = parameter.dim() > 1
            cost = layers.get(name.rpartition(".")[0], 0.0) if is_weight else 0.0
        own = axes.get(name, [])
        if cost:
            found.append((cost, own, [parameter.shape[axis.dim] for axis in own]))
    return found
