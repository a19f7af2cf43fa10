"""Surgery: what goes with units of tensors, sizes of modules and graphs, and taking it out in place."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph.capture import canonical, tensors_of
from prunekit.graph.captured_graph import Captured
from prunekit.graph.coupling_graph import CouplingGraph, Group, GroupPlan, KeepMasks
from prunekit.graph.sizes import CHANGED, LAYERS, Unmet, changed, corrected, sizes
from prunekit.masked_optimizer import check_detached
from prunekit.masks import Masks
from prunekit.targets import uncompiled, unwrap

Axes = Mapping[int, Tensor]
"""For some axes of a tensor, which of their entries stay: a boolean vector each."""


@dataclass(frozen=True)
class Cut:
    """What stays of a network.

    Attributes:
        tensors: for each parameter and buffer that units reach into, by full name, the axes they are on.
        sizes: attributes of modules that count units, by (module, attribute), with their new values.
        factors: by which the entries of some parameters are multiplied once units are taken out.
    """

    tensors: Mapping[str, Axes]
    sizes: Mapping[tuple[str, str], Any]
    factors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """What has to be done to take units out.

    Attributes:
        cut: of tensors and attributes.
        keeping: what stays of every node.
        graphs: the captured graphs with sizes that fit.
        unmet: arguments that the network's own code does not make to fit.
    """

    cut: Cut
    keeping: KeepMasks
    graphs: tuple[Captured, ...]
    unmet: tuple[Unmet, ...] = ()


def operation(model: nn.Module, found: CouplingGraph, kept: Mapping[str, Tensor]) -> Operation:
    """What has to be done to a network; nothing is done to it yet.

    Args:
        model: the network.
        found: its plan with its graphs.
        kept: checked flags of the groups that lose units.

    Raises:
        InputError: where nothing would be left of a tensor.
    """
    keeping = found.keeping({name: (~each).nonzero().flatten().tolist() for name, each in kept.items()})
    tensors = axes_after(model, found.plan, kept)
    graphs = tuple(corrected(graph, keeping, number) for number, graph in enumerate(found.graphs))
    attributes, unmet = sizes(model, _shapes(model, tensors), graphs, keeping)
    return Operation(Cut(tensors, attributes), keeping, graphs, unmet)


def unit_masks(
    model: nn.Module, plan: GroupPlan, kept: Mapping[str, Tensor], *, allow_empty: bool = False
) -> Masks:
    """Masks with which every removed unit is off: zero in all slices of parameters that go with it.

    Masked are the unit's rows and biases in the layers that make it, its entries in the norms on the way,
    and, which is what counts, its columns in the layers that read it.

    Args:
        model: the network, without wrappers.
        plan: its groups.
        kept: for some of them (units,) boolean flags, True = kept.
        allow_empty: whether a group may lose all its units.

    Returns:
        One mask for each parameter that a named group reaches into, on the parameter's device.

    Raises:
        InputError: for an unknown group, or flags that are not boolean, of another length or all False.
    """
    parameters = dict(model.named_parameters())
    masks = {}
    for name, axes in zeroed(plan, axes_after(model, plan, _flags(plan, kept, allow_empty))).items():
        if name in parameters:
            masks[name] = staying(parameters[name].shape, axes).to(parameters[name].device)
    return Masks(masks)


def zeroed(plan: GroupPlan, tensors: Mapping[str, Axes]) -> dict[str, Axes]:
    """The axes along which units are zero while they are there: not those that they are divided by.

    Zeros there would make what is masked infinite.
    """
    divisors = {
        (member.tensor, member.dim)
        for group in plan.groups
        for member in group.members
        if member.role == "divisor"
    }
    left = {
        name: {axis: flags for axis, flags in axes.items() if (name, axis) not in divisors}
        for name, axes in tensors.items()
    }
    return {name: axes for name, axes in left.items() if axes}


def staying(shape: torch.Size, axes: Axes) -> Tensor:
    """The boolean mask, on the CPU, of the entries of a tensor that stay along all axes."""
    mask = torch.ones(shape, dtype=torch.bool)
    for axis, flags in axes.items():
        mask &= flags.cpu().view([-1 if place == axis else 1 for place in range(mask.dim())])
    return mask


def parameters_after(
    model: nn.Module, plan: GroupPlan, kept: Mapping[str, Tensor], *, allow_empty: bool = False
) -> int:
    """How many parameters the network has once the units are taken out; nothing is changed for it.

    Raises:
        InputError: as `unit_masks`.
    """
    model = unwrap(model)
    lost = axes_after(model, plan, _flags(plan, kept, allow_empty))
    shapes = _shapes(model, lost)
    return sum(math.prod(shapes.get(name, each.shape)) for name, each in model.named_parameters())


def _flags(plan: GroupPlan, kept: Mapping[str, Tensor], allow_empty: bool = False) -> dict[str, Tensor]:
    return {
        name: check_flags(name, flags, plan.group(name).units, allow_empty=allow_empty)
        for name, flags in kept.items()
    }


def check_flags(name: str, flags: Tensor, units: int, *, allow_empty: bool = False) -> Tensor:
    """The flags of a group of so many units, on the CPU.

    Raises:
        InputError: where they are not boolean, of another length or, unless `allow_empty`, all False.
    """
    if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
        raise InputError(f"kept[{name!r}] must be a boolean tensor (True = kept)")
    if tuple(flags.shape) != (units,):
        raise InputError(f"kept[{name!r}] has shape {tuple(flags.shape)}, the group has {units} units")
    if not allow_empty and not bool(flags.any()):
        raise InputError(f"kept[{name!r}] removes all {units} units: at least one must stay")
    return flags.detach().cpu()


def checked(plan: GroupPlan, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The flags of the groups that lose units, on the CPU.

    Raises:
        InputError: for an unknown group, or flags that are not boolean, of another length or all False.
        ModelError: for a group that is frozen.
    """
    found = {name: flags for name, flags in _flags(plan, kept).items() if not bool(flags.all())}
    for name in found:
        if name in plan.frozen:
            raise ModelError(f"the units of {name!r} cannot be taken out: {plan.frozen[name]}")
    return found


def axes_after(model: nn.Module, plan: GroupPlan, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """For each parameter and buffer that these groups reach into, the axes and which entries stay."""
    every = tensors_of(model)
    found: dict[str, dict[int, Tensor]] = {}
    for name, flags in kept.items():
        gone = (~flags).nonzero().flatten().tolist()
        for member in plan.group(name).members:
            size = every[member.tensor].shape[member.dim]
            axes = found.setdefault(member.tensor, {})
            stays = axes.setdefault(member.dim, torch.ones(size, dtype=torch.bool))
            stays[[index for unit in gone for index in member.indices[unit]]] = False
    return found


def _shapes(model: nn.Module, tensors: Mapping[str, Mapping[int, Tensor]]) -> dict[str, tuple[int, ...]]:
    """New shapes under all names of the tensors that change."""
    every = tensors_of(model, every_name=True)
    shapes = {}
    for name, first in canonical(model).items():
        if first in tensors:
            shape = list(every[name].shape)
            for axis, flags in tensors[first].items():
                shape[axis] = int(flags.sum())
            shapes[name] = tuple(shape)
    return shapes


def operate(
    model: nn.Module,
    cut: Cut,
    masks: Mapping[str, Tensor] | None = None,
    values: Mapping[str, Tensor] | None = None,
) -> None:
    """Carry out a cut, with the ties between parameters; the model is as it was if that fails.

    Args:
        model: the network, which is changed.
        cut: what stays of it.
        masks: of single weights; removed ones are set to zero before.
        values: new values of parameters, written before.
    """
    surgery = Surgery(model)
    names = canonical(model)
    try:
        for name, mask in (masks or {}).items():
            surgery.zero(name, ~mask)
        for name, value in (values or {}).items():
            surgery.write(name, value)
        surgery.cut(cut)
        for name, first in names.items():
            if name != first and first in cut.tensors:
                surgery.tie(name, first)
    except BaseException:  # an interrupt, too, must not leave half a network
        surgery.undo()
        raise


def alike(group: Group) -> list[list[int]]:
    """Units that reach into the same tensors: queries apart from values, halves that part ways later."""
    if all(all(member.indices) for member in group.members):
        return [list(range(group.units))]
    found: dict[tuple[bool, ...], list[int]] = {}
    for unit in range(group.units):
        reach = tuple(bool(member.indices[unit]) for member in group.members)
        found.setdefault(reach, []).append(unit)
    return list(found.values())


def smaller_masks(masks: Masks, cut: Cut) -> Masks:
    """Masks of single weights, for the layers after a cut."""
    return Masks({name: taken(mask, cut.tensors.get(name, {})) for name, mask in masks.items()})


def own_module(model: nn.Module) -> nn.Module:
    """The user's module, of which layers may be replaced.

    Raises:
        InputError: if masks act on its training.
        ModelError: if it is wrapped for distributed training, which holds on to the weights as they were.
    """
    if isinstance(uncompiled(model), nn.parallel.DistributedDataParallel):
        raise ModelError("a model in DistributedDataParallel cannot shrink: shrink it before it is wrapped")
    model = unwrap(model)
    check_detached(model)
    return model


def put_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
    """Put modules, by their full names, in the places of others; what is returned puts those back."""
    before = {name: model.get_submodule(name) for name in modules}

    def put(those: Mapping[str, nn.Module]) -> None:
        for name, module in those.items():
            place, _, short = name.rpartition(".")
            setattr(model.get_submodule(place), short, module)

    put(modules)
    return partial(put, before)


class Surgery:
    """Changes to a network, each remembered.

    A tensor that gets smaller is replaced by a new one, never written to, so that taking the change back puts
    the very objects back that were there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def cut(self, cut: Cut) -> None:
        """Carry out a cut: parameters, buffers, their factors and the attributes that count units."""
        for name, axes in cut.tensors.items():
            lost = {axis: flags for axis, flags in axes.items() if not bool(flags.all())}
            if lost:
                self._replace(name, lost)
        for name, factor in cut.factors.items():
            parameter = self._model.get_parameter(name).detach()
            self.write(name, parameter * factor.to(parameter))
        for (module, attribute), size in cut.sizes.items():
            owner = self._model.get_submodule(module)
            self._undo.append(partial(setattr, owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, size)
            before = changed(owner)
            if attribute not in LAYERS and attribute not in before:
                self._undo.append(partial(vars(owner).__setitem__, CHANGED, before))
                vars(owner)[CHANGED] = (*before, attribute)

    def write(self, name: str, value: Tensor) -> None:
        """Give a parameter other values; it stays the same object."""
        parameter = self._model.get_parameter(name)
        before = parameter.detach().clone()
        _copy(parameter, value)
        self._undo.append(partial(_copy, parameter, before))

    def zero(self, name: str, places: Tensor) -> None:
        """Set some of a parameter's values to zero, if they are not; it stays the same object."""
        parameter = self._model.get_parameter(name).detach()
        places = places.to(parameter.device)
        if bool((parameter[places] != 0).any()):
            self.write(name, parameter.masked_fill(places, 0))

    def tie(self, name: str, first: str) -> None:
        """Let a parameter or buffer be the same object as another one."""
        holder, short = self._holder(name)
        source, other = self._holder(first)
        self._undo.append(partial(holder.__setitem__, short, holder[short]))
        holder[short] = source[other]

    def undo(self) -> None:
        """Make the network exactly as it was."""
        while self._undo:
            self._undo.pop()()

    def _replace(self, name: str, axes: Axes) -> None:
        holder, short = self._holder(name)
        before = holder[short]
        whole = before.detach()
        smaller = taken(whole, axes).contiguous(memory_format=_memory_format(whole))
        if isinstance(before, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=before.requires_grad)
            vars(smaller).update(vars(before))  # marks that users and optimizers hang on parameters
        holder[short] = smaller
        self._undo.append(partial(holder.__setitem__, short, before))

    def _holder(self, name: str) -> tuple[dict[str, Any], str]:
        place, _, short = name.rpartition(".")
        owner = self._model.get_submodule(place)
        return (owner._parameters if short in owner._parameters else owner._buffers), short


def taken(tensor: Tensor, axes: Axes) -> Tensor:
    """What stays of a tensor."""
    for axis, flags in axes.items():
        tensor = tensor.index_select(axis, flags.nonzero().flatten().to(tensor.device))
    return tensor


def _memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels last where the tensor was laid out so; where both hold, as for 1x1 kernels, the plain one."""
    if not tensor.is_contiguous():
        for format in (torch.channels_last, torch.channels_last_3d):
            dims = 4 if format is torch.channels_last else 5
            if tensor.dim() == dims and tensor.is_contiguous(memory_format=format):
                return format
    return torch.contiguous_format


@torch.no_grad()
def _copy(parameter: Tensor, value: Tensor) -> None:
    parameter.copy_(value)
