"""What taking units out of any network changes: tensors, attributes of modules, and the exported graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from prunekit.errors import InputError, ModelError
from prunekit.graph.attributes import sizes
from prunekit.graph.capture import Inputs, arguments, canonical
from prunekit.graph.correct import Corrected, corrected
from prunekit.graph.graph_model import GraphModel, graphs_of
from prunekit.graph.groups import Group, Plan
from prunekit.graph.traced import Keeping, Traced
from prunekit.masks import Masks
from prunekit.structure.cut import Cut
from prunekit.structure.modes import evaluating
from prunekit.structure.surgery import Surgery
from prunekit.structure.units import outer
from prunekit.structure.verify import copy_of
from prunekit.targets import unwrap


@dataclass(frozen=True)
class Operation:
    """What has to be done to take units out.

    Attributes:
        cut: of tensors and attributes.
        keeping: what stays of every node.
        graphs: the captured graphs with sizes that fit, by number.
    """

    cut: Cut
    keeping: Keeping
    graphs: dict[int, Corrected]

    @property
    def modules(self) -> dict[int, fx.GraphModule]:
        """The same graphs, to be run."""
        return {number: graph.module for number, graph in self.graphs.items()}


def operation(model: nn.Module, found: Traced, kept: Mapping[str, Tensor]) -> Operation:
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
    graphs = {
        number: corrected(graph.graph, graph.root, keeping, number)
        for number, graph in enumerate(found.graphs)
    }
    pairs = [(graph, graphs[number]) for number, graph in enumerate(found.graphs)]
    attributes = sizes(model, found.plan, kept, _shapes(model, tensors), pairs)
    return Operation(Cut(tensors, attributes), keeping, graphs)


def smaller(model: nn.Module, found: Traced, kept: Mapping[str, Tensor], example_inputs: Inputs) -> nn.Module:
    """A copy of a network without some of its units, to be counted or timed: what is left is not proven.

    Args:
        model: the network, which stays as it is.
        found: its plan with its graphs.
        kept: for each group that loses units (units,) boolean flags, True = kept.
        example_inputs: on which the copy must run; where its own code does not, its graphs do.

    Raises:
        InputError, ModelError: as `shrink_groups`.
    """
    model = unwrap(model)
    flags = checked(found.plan, kept)
    work = operation(model, found, flags)
    copied = copy_of(model)
    operate(copied, work.cut)
    args, kwargs = arguments(example_inputs)
    try:
        with evaluating(copied), torch.no_grad():
            copied(*args, **kwargs)
    except Exception:  # whatever a forward raises that has sizes written in its code
        return GraphModel(copied, graphs_of(found.graphs, work.modules))
    return copied


def group_masks(model: nn.Module, plan: Plan, kept: Mapping[str, Tensor]) -> Masks:
    """Masks with which every removed unit is off: zero in all slices of parameters that go with it.

    Args:
        model: the network.
        plan: its groups.
        kept: for some of them (units,) boolean flags, True = kept.

    Returns:
        One mask for each parameter that a named group reaches into, on the parameter's device.
    """
    parameters = dict(unwrap(model).named_parameters())
    return Masks(
        {
            name: outer(tuple(parameters[name].shape), axes).to(parameters[name].device)
            for name, axes in axes_after(unwrap(model), plan, kept).items()
            if name in parameters
        }
    )


def checked(plan: Plan, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The flags of the groups that lose units, on the CPU.

    Raises:
        InputError: for an unknown group, or flags that are not boolean, of another length or all False.
        ModelError: for a group that is frozen.
    """
    found = {}
    for name, flags in kept.items():
        group = plan.group(name)
        if not isinstance(flags, Tensor) or flags.dtype != torch.bool:
            raise InputError(f"kept[{name!r}] must be a boolean tensor (True = kept)")
        if tuple(flags.shape) != (group.units,):
            raise InputError(
                f"kept[{name!r}] has shape {tuple(flags.shape)}, the group has {group.units} units"
            )
        if not bool(flags.any()):
            raise InputError(f"kept[{name!r}] removes all {group.units} units: at least one must stay")
        if group.frozen is not None and not bool(flags.all()):
            raise ModelError(f"group {name!r} cannot lose units: {group.frozen}")
        if not bool(flags.all()):
            found[name] = flags.cpu()
    return found


def axes_after(model: nn.Module, plan: Plan, kept: Mapping[str, Tensor]) -> dict[str, dict[int, Tensor]]:
    """For each parameter and buffer that these groups reach into, the axes and which entries stay."""
    every = dict([*model.named_parameters(), *model.named_buffers()])
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
    every = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    shapes = {}
    for name, first in canonical(model).items():
        if first in tensors:
            shape = list(every[name].shape)
            for axis, flags in tensors[first].items():
                shape[axis] = int(flags.sum())
            shapes[name] = tuple(shape)
    return shapes


def operate(model: nn.Module, cut: Cut) -> None:
    """Carry out a cut, with the ties between parameters; the model is as it was if that fails."""
    surgery = Surgery(model)
    names = canonical(model)
    try:
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
