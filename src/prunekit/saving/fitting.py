"""A network of the user's class and what was saved of one: whether they fit, and making them fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, shown
from prunekit.graph import GraphModel, restore_sizes
from prunekit.saving.folder import BUFFER, Description, consistent


def check_state(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse, with a `ModelError`, a state with other names than the model's, or another kind of numbers."""
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    if missing or extra:
        raise ModelError(
            f"the network in {folder} is another one: "
            + "; ".join(
                f"{what} {', '.join(map(shown, names[:3]))}"
                for what, names in (("the file lacks", missing), ("the model lacks", extra))
                if names
            )
        )
    _check_kinds(own, state, folder)


def _check_kinds(own: Mapping[str, Tensor], state: Mapping[str, Tensor], folder: Path) -> None:
    """Copying would drop imaginary parts and what is behind the point, without a word."""
    for name, value in state.items():
        if not isinstance(own[name], Tensor):
            raise ModelError(f"{shown(name)} of the model's state is no tensor: only tensors are loaded")
        if not torch.can_cast(value.dtype, own[name].dtype):
            kinds = [str(each.dtype).removeprefix("torch.") for each in (own[name], value)]
            raise ModelError(
                f"{shown(name)} is of {kinds[0]} in the model, of {kinds[1]} in {folder}: it would "
                "lose values"
            )


@contextmanager
def fitted(
    model: nn.Module,
    state: Mapping[str, Tensor],
    description: Description,
    tensors: Mapping[str, Tensor],
    folder: Path,
) -> Iterator[dict[str, Tensor]]:
    """The model with layers as small as the saved ones, if units were taken out before it was saved.

    Yields the values of buffers that the state leaves out, where sizes changed. The layers get their sizes,
    and the objects that they held, back if what is done inside fails.

    Args:
        model: a freshly built network.
        state: all its parameters and buffers that are saved.
        description: what `prunekit.json` says.
        tensors: everything that the file of the weights holds.
        folder: of the files.

    Raises:
        ModelError: if what was saved does not come from this network; it is left as it was.
    """
    own = model.state_dict()
    name = next((name for name, value in own.items() if value.shape != state[name].shape), None)
    buffers: dict[str, Tensor] = {}
    undo: Callable[[], None] = lambda: None  # noqa: E731
    if name is not None:
        beside = {name: value for name, value in model.named_buffers() if name + BUFFER in tensors}
        buffers = {name: tensors[name + BUFFER] for name in beside}
        _check_kinds(beside, buffers, folder)
        shapes = {name: value.shape for name, value in {**state, **buffers}.items()}
        try:
            with consistent(folder):
                undo = restore_sizes(model, shapes, description.sizes)
        except ModelError as error:
            raise ModelError(
                f"{name} has shape {tuple(own[name].shape)} in the model, {tuple(state[name].shape)} in "
                f"{folder}, and taking units out of the model does not give it: {error}"
            ) from None
    try:
        yield buffers
    except BaseException:
        undo()
        raise


def tie(model: nn.Module, sources: Mapping[str, str]) -> None:
    """Put parameters in the places of others, given by name, as they were when they were saved."""
    for name, source in sources.items():
        parameters = dict(model.named_parameters(remove_duplicate=False))
        if name in parameters and source in parameters and parameters[name] is not parameters[source]:
            layer, _, short = name.rpartition(".")
            setattr(model.get_submodule(layer), short, parameters[source])


def unnamed(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that the state leaves out: of real numbers, which may have lost entries; of a graph all."""
    every = isinstance(model, GraphModel)
    named = set(model.state_dict(keep_vars=True))
    return {
        name + BUFFER: buffer.detach().cpu().contiguous().clone()
        for name, buffer in model.named_buffers(remove_duplicate=not every)
        if name not in named
        and not (every and name.startswith("_constant"))
        and (every or buffer.is_floating_point())
    }
