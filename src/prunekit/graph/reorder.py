"""Units in another order: the same function, in fewer bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit.batches import Inputs
from prunekit.compress import order_by_counts
from prunekit.graph.copies import copy_of
from prunekit.graph.coupling_graph import Group, Member
from prunekit.graph.members import of_units
from prunekit.graph.plan import traced
from prunekit.graph.proof import same_function
from prunekit.graph.surgery import own_module
from prunekit.masks import Masks
from prunekit.modes import Snapshot


@torch.no_grad()
def reorder_units(model: nn.Module, example_inputs: Inputs, *, masks: Masks | None = None) -> Masks:
    """The masks of a network whose units were sorted, in place: those of most weights come first.

    The order of neurons and filters means nothing to a network, and a file in which the numbers of weights
    never rise from one row to the next takes fewer bytes. A group stays as it is where its units are not all
    alike, such as heads of attention, where a layer that the example inputs do not reach may read them, and
    where the proof on these inputs finds another function.

    Args:
        model: any network that PyTorch can export.
        example_inputs: a tensor, a tuple of arguments, or a dict of named arguments.
        masks: of single weights, which are put in order along.

    Raises:
        InputError: if the masks are another model's.
        ModelError: if the network cannot be traced.
    """
    model = own_module(model)
    masks = masks or Masks({})
    masks.parameters(model)
    found = traced(model, example_inputs)
    unseen = found.out_of_sight(model)
    before = Snapshot(model)
    try:
        groups = [group for group in found.plan.prunable if group.name not in unseen]
        return _in_order(model, example_inputs, groups, masks)
    except BaseException:  # the masks are those of the order before
        before.restore()
        raise


def _in_order(model: nn.Module, example_inputs: Inputs, groups: Sequence[Group], masks: Masks) -> Masks:
    order = dict(masks)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for group in groups:
        if not all(_alike(member) and member.tensor in tensors for member in group.members):
            continue
        places = _sorted(group, tensors)
        if torch.equal(places, torch.arange(group.units)):
            continue
        before = copy_of(model)
        was = {name: tensors[name].clone() for name in {member.tensor for member in group.members}}
        for member in group.members:
            tensors[member.tensor].copy_(_moved(tensors[member.tensor], member, places))
        if not same_function(before, model, example_inputs).accepted:
            for name, value in was.items():
                tensors[name].copy_(value)
            continue
        for member in group.members:
            if member.tensor in order:
                order[member.tensor] = _moved(order[member.tensor], member, places)
    return Masks(order)


def _alike(member: Member) -> bool:
    """Whether every unit has as many entries."""
    return len({len(entries) for entries in member.indices}) == 1


def _sorted(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """The numbers of the units in their new order."""
    made, read = (
        sum(
            (of_units((tensors[each.tensor] != 0).double(), each, "sum").cpu() for each in members),
            torch.zeros(group.units, dtype=torch.float64),
        )
        for members in (group.producers, group.consumers)
    )
    return torch.from_numpy(order_by_counts(made.numpy(), read.numpy()))


def _moved(value: Tensor, member: Member, places: Tensor) -> Tensor:
    """The entries of unit places[i] where those of unit i were.

    With two entries for each of three units, at 0 1, 2 3 and 4 5, the places 2, 0, 1 make of a b c d e f the
    entries e f a b c d.
    """
    entries = torch.tensor(member.indices)
    source = torch.arange(value.shape[member.dim])
    source[entries.flatten()] = entries[places].flatten()
    return value.index_select(member.dim, source.to(value.device))
