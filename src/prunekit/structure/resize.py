"""A freshly built network, made to the sizes of one that shrank, so that its state can be loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError
from prunekit.graph.surgery import Surgery
from prunekit.maxout import Maxout
from prunekit.structure.chain import Chain, UnitGroup
from prunekit.structure.reader import chain_of
from prunekit.structure.shrinking import cut_of_pieces
from prunekit.structure.units import cut_of
from prunekit.targets import unwrap

Shapes = Mapping[str, Sequence[int]]


def resize_to(model: nn.Module, shapes: Shapes) -> Callable[[], None]:
    """Give a network's layers, in place, the sizes that a state dict has; its values are then of no meaning.

    A network that has these shapes already is left alone, whether it is a chain or not.

    Args:
        model: a freshly built network of the class that was shrunk.
        shapes: the shape of each entry of the state dict, by full name.

    Returns:
        What makes the network as it was.

    Raises:
        ModelError: if the entries are not those of the model, it is no chain, or its layers cannot get these
            sizes because they would have to grow or because something other than units differs; the model is
            then as it was.
    """
    model = unwrap(model)
    wanted = {name: tuple(shape) for name, shape in shapes.items()}
    own = _shapes(model)
    if set(own) != set(wanted):
        name = sorted(set(own) ^ set(wanted))[0]
        lacks = "the model has no" if name in wanted else "the shapes have no"
        raise ModelError(f"the model is not the one that was shrunk: {lacks} {name!r}")
    surgery = Surgery(model)
    if own == wanted:
        return surgery.undo
    try:
        surgery.cut(cut_of_pieces(model, _first_pieces(model, wanted)))
        if _shapes(model) != wanted:
            chain = _chain(model, own, wanted)
            kept = {group.name: _first(group, wanted, own) for group in chain.groups}
            surgery.cut(cut_of(model, chain, kept))
        _check(_shapes(model), wanted)
    except BaseException:
        surgery.undo()
        raise
    return surgery.undo


def _first_pieces(model: nn.Module, wanted: Shapes) -> dict[str, Tensor]:
    """Flags that keep as many pieces of each maxout layer as are wanted, where fewer are."""
    kept = {}
    for name, layer in model.named_modules():
        if isinstance(layer, Maxout):
            pieces = wanted[f"{name}.layer.weight"][0] // layer.units
            if 1 <= pieces < layer.pieces:
                kept[name] = (torch.arange(layer.pieces) < pieces).expand(layer.units, -1)
    return kept


def _chain(model: nn.Module, own: Shapes, wanted: Shapes) -> Chain:
    """With the input's features only where they differ: not every network tells them apart."""
    chain = chain_of(model)
    first = next(stage for stage in chain.stages if f"{stage.name}.weight" in own and _reads(stage.module))
    name = f"{first.name}.weight"
    return chain if own[name][1] == wanted[name][1] else chain_of(model, inputs=True)


def _reads(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)


def _first(group: UnitGroup, wanted: Shapes, own: Shapes) -> Tensor:
    """Flags that keep as many of a group's units as are wanted."""
    if group.producer is not None:
        name = f"{group.producer}.weight"
        units, rest = wanted[name][0], 0
    else:
        name = f"{group.consumer}.weight"
        units, rest = divmod(wanted[name][1], group.repeat)
    if not 1 <= units <= group.units or rest:
        raise ModelError(
            f"{name} has shape {tuple(own[name])}, it cannot be made {tuple(wanted[name])}: "
            f"{group.name!r} has {group.units} units"
        )
    if group.fixed and units != group.units:
        raise ModelError(f"the units of {group.name!r} cannot be taken out: {group.fixed}")
    return torch.arange(group.units) < units


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def _check(own: Shapes, wanted: Shapes) -> None:
    for name, shape in wanted.items():
        if tuple(own[name]) != shape:
            raise ModelError(
                f"{name} of the saved network has shape {tuple(shape)}, which removing units does not give: "
                f"it would be {tuple(own[name])}"
            )
