"""Making a network's layers smaller in place, in a way that can be taken back to the bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.structure.cut import Axes, Cut


class Surgery:
    """Changes to a network, each remembered.

    A tensor that gets smaller is replaced by a new one, never written to, so that taking the change back puts
    the very objects back that were there.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._undo: list[Callable[[], None]] = []

    def cut(self, cut: Cut) -> None:
        """Carry out a cut: parameters, buffers and the attributes that count units."""
        for name, axes in cut.tensors.items():
            lost = {axis: flags for axis, flags in axes.items() if not bool(flags.all())}
            if lost:
                self._replace(name, lost)
        for (module, attribute), size in cut.sizes.items():
            owner = self._model.get_submodule(module)
            self._undo.append(partial(setattr, owner, attribute, getattr(owner, attribute)))
            setattr(owner, attribute, size)

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
        smaller = _taken(before.detach(), axes)
        if isinstance(before, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=before.requires_grad)
            vars(smaller).update(vars(before))  # marks that users and optimizers hang on parameters
        holder[short] = smaller
        self._undo.append(partial(holder.__setitem__, short, before))

    def _holder(self, name: str) -> tuple[dict[str, Any], str]:
        place, _, short = name.rpartition(".")
        owner = self._model.get_submodule(place)
        return (owner._parameters if short in owner._parameters else owner._buffers), short


def _taken(tensor: Tensor, axes: Axes) -> Tensor:
    smaller = tensor
    for axis, flags in axes.items():
        smaller = smaller.index_select(axis, flags.nonzero().flatten().to(tensor.device))
    return smaller.clone(memory_format=_memory_format(tensor))


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
