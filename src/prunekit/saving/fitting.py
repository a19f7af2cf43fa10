"""Whether what was saved fits a network, and making the network fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ModelError, shown
from prunekit.graph import drop_layers, replace_convolutions, replace_with_absent, restore_sizes
from prunekit.graph.rows import LAYERS, TRANSPOSED
from prunekit.graph.surgery import put_modules
from prunekit.models import MergedConv2d
from prunekit.saving.description import BUFFER, consistent
from prunekit.saving.saved_files import SavedFiles


def check_state(model: nn.Module, state: Mapping[str, Tensor], files: SavedFiles) -> None:
    """Refuse, with a `ModelError`, a state with other names than the model's, or another kind of numbers."""
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    if missing or extra:
        raise ModelError(
            f"the network in {files.path} is another one: "
            + "; ".join(
                f"{what} {', '.join(map(shown, names[:3]))}"
                for what, names in (("the file lacks", missing), ("the model lacks", extra))
                if names
            )
        )
    _check_kinds(own, state, files)


def _check_kinds(own: Mapping[str, Tensor], state: Mapping[str, Tensor], files: SavedFiles) -> None:
    """Copying would drop imaginary parts and what is behind the point, without a word."""
    for name, value in state.items():
        if not isinstance(own[name], Tensor):
            raise ModelError(f"{shown(name)} of the model's state is no tensor: only tensors are loaded")
        if not torch.can_cast(value.dtype, own[name].dtype):
            kinds = [str(each.dtype).removeprefix("torch.") for each in (own[name], value)]
            raise ModelError(
                f"{shown(name)} is of {kinds[0]} in the model, of {kinds[1]} in {files.path}: it would "
                "lose values"
            )


@contextmanager
def with_replaced(
    model: nn.Module, state: Mapping[str, Tensor], dropped: Mapping[str, Sequence[int]]
) -> Iterator[None]:
    """The model without layers and modules, with convolutions of some columns, and with merged ones.

    Layers without a bias get one where batch norms went into them. The model is whole again if what is done
    inside fails.

    Raises:
        ModelError: if what was saved does not come from this network; it is left as it was.
    """
    undo = [
        drop_layers(model, {name: each for name, each in dropped.items() if _has_all(model, name, state)})
    ]
    try:
        undo += _replaced(model, state)
        yield
    except BaseException:
        for each in reversed(undo):
            each()
        raise


def _has_all(model: nn.Module, place: str, state: Iterable[str]) -> bool:
    """Whether a list is longer than what was saved of it: the network may have been built with fewer."""
    numbers = [
        name.removeprefix(f"{place}.").partition(".")[0] for name in state if name.startswith(f"{place}.")
    ]
    saved = {int(each) for each in numbers if each.isdecimal()}
    names = [name for name, _ in model.named_modules() if name.startswith(f"{place}.")]
    built = [name.removeprefix(f"{place}.") for name in names]
    return sum(each.isdecimal() for each in built) > max(saved, default=-1) + 1


def _replaced(model: nn.Module, state: Mapping[str, Tensor]) -> list[Callable[[], None]]:
    """Put other modules in the places of those that were saved as such; what is returned puts them back."""
    modules, own = dict(model.named_modules(remove_duplicate=False)), model.state_dict()
    columns, absent = dict[str, Tensor](), dict[str, Tensor]()
    merged, biases = dict[str, nn.Module](), list[nn.Module]()
    for name, value in state.items():
        place, _, short = name.rpartition(".")
        if short == "columns" and isinstance(modules.get(place), nn.Conv2d):
            columns[place] = value
        if short == "absent" and name not in own:
            absent[place] = value
        layer = modules.get(place)
        if short == "geometry" and name not in own and isinstance(layer, nn.Conv2d):
            weight = state.get(f"{place}.weight", value)
            merged[place] = MergedConv2d(layer, weight.shape, value)
        if short == "bias" and name not in own and isinstance(layer, LAYERS + TRANSPOSED):
            biases.append(layer)
    undo = [replace_with_absent(model, absent)]
    try:
        undo.append(replace_convolutions(model, columns))
        undo.append(put_modules(model, merged))
        undo.append(_with_biases([each for each in biases if absent and each not in merged.values()]))
    except BaseException:
        for each in reversed(undo):
            each()
        raise
    return undo


def _with_biases(layers: Iterable[Any]) -> Callable[[], None]:
    """Give layers biases of zeros; what is returned takes them away."""
    given = [layer for layer in layers if layer.bias is None]
    for layer in given:
        outputs = getattr(layer, "out_features", None) or layer.out_channels
        layer.bias = nn.Parameter(layer.weight.new_zeros(outputs), requires_grad=layer.weight.requires_grad)

    def back() -> None:
        for layer in given:
            layer.bias = None

    return back


@contextmanager
def fitted(
    model: nn.Module,
    state: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    files: SavedFiles,
) -> Iterator[dict[str, Tensor]]:
    """The model with layers as small as the saved ones, if units were taken out before it was saved.

    Yields the values of buffers that the state leaves out, where sizes changed. The layers get their sizes,
    and the objects that they held, back if what is done inside fails.

    Args:
        model: a freshly built network.
        state: all its parameters and buffers that are saved.
        tensors: everything that the file of the weights holds.
        files: that hold it.

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
        _check_kinds(beside, buffers, files)
        shapes = {name: value.shape for name, value in {**state, **buffers}.items()}
        try:
            with consistent(files.misfit("weights")):
                undo = restore_sizes(model, shapes, files.description.sizes)
        except ModelError as error:
            raise ModelError(
                f"{name} has shape {tuple(own[name].shape)} in the model, {tuple(state[name].shape)} in "
                f"{files.path}, and taking units out of the model does not give it: {error}"
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
