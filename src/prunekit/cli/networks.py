"""From the words on a command line to a network: a model by name, a user's own, or a saved folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prunekit.cli.own_code import typed
from prunekit.data import Dataset
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import GraphModel
from prunekit.models import ModelSettings, create, names
from prunekit.models.factories import data_arguments
from prunekit.saving import Architecture, holds_graph, load_architecture, load_pretrained
from prunekit.saving.folder import DESCRIPTION, WEIGHTS, describe
from prunekit.strict_yaml import load_yaml
from prunekit.trial import check_takes


@dataclass(frozen=True)
class Sizes:
    """What a model takes from its dataset: the shape of one example, and the number of outputs."""

    input_shape: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Network:
    """A network and, where it is known, how it is built."""

    model: nn.Module
    architecture: Architecture | None


def open_network(
    text: str,
    *,
    data: Dataset | None,
    sizes: Sizes | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Network:
    """The network that a person means.

    Args:
        text: a folder that `save_pretrained` wrote, the name of a model, `module:function`, or a model's
            settings as YAML, such as '{name: mlp, hidden: [64, 32]}'.
        data: the dataset, whose sizes the named models take; the network must be able to take its examples.
        sizes: the same without a dataset.
        weights: a folder of `save_pretrained`, or a safetensors file with a state dict.
        seed: of the initial values, if there are no weights.

    Raises:
        InputError, ModelError, DataError: whatever is wrong, in one line.
    """
    if data is not None:
        sizes = Sizes(data.input_shape, data.outputs)
    network = _saved(text, weights) if is_saved(text) else _new(text, sizes, seed)
    if weights is not None:
        _load_weights(network.model, weights)
    if data is not None:
        shape = network.model.input_shapes[0] if isinstance(network.model, GraphModel) else None
        check_takes(network.model, text, data.test.inputs[: shape[0] if shape else 2])
    return network


def is_saved(text: str) -> bool:
    """Whether a folder is meant; one that only happens to have the name of a model is not."""
    return Path(text).is_dir() and (text not in names() or (Path(text) / DESCRIPTION).is_file())


def _saved(text: str, weights: Path | None) -> Network:
    if weights is not None:
        raise InputError(f"{text} is a saved network with weights of its own: leave out --weights")
    if holds_graph(text):
        return Network(load_pretrained(text), None)
    own = _own_model(Path(text))
    if own is not None:
        raise InputError(
            f"{text} does not hold the code of its network: write {own} in its place, and --weights {text}"
        )
    return Network(load_pretrained(text), load_architecture(Path(text)))


def _own_model(folder: Path) -> str | None:
    """What a person must name in place of a save that prunekit cannot build; a file names no code to run."""
    saved = describe(folder).architecture
    if saved is None:
        return "module:function"
    return saved.name if ":" in saved.name else None


def _new(text: str, sizes: Sizes | None, seed: int) -> Network:
    settings = _settings(text)
    takes = data_arguments(settings.name, settings.factory, (1,), 1)
    if takes and sizes is None:
        raise InputError(
            f"the model {settings.name} takes its shapes from a dataset: add --data "
            "(to inspect it, --input-shape will do)"
        )
    chosen = sizes or Sizes((1,), 1)
    model = create(settings, chosen.input_shape, chosen.outputs, seed=seed)
    return Network(model, Architecture(settings, sizes.input_shape, sizes.outputs) if sizes else None)


def _settings(text: str) -> ModelSettings:
    if not text.lstrip().startswith("{"):
        if "/" in text and ":" not in text:
            raise InputError(f"there is no folder {text}")
        return _typed_settings({"name": text})
    try:
        values: Any = load_yaml(text)
    except InputError as error:
        raise InputError(f"the model {text!r} is not valid YAML: {error}") from None
    return _typed_settings(values)


def _typed_settings(values: Any) -> ModelSettings:
    with typed(values.get("name") if isinstance(values, dict) else None):
        return ModelSettings.parse(values)


def _load_weights(model: nn.Module, weights: Path) -> None:
    folder = weights.parent if weights.name == WEIGHTS else weights
    if folder.is_dir() and (folder == weights or (folder / DESCRIPTION).is_file()):
        load_pretrained(folder, model)  # also where the file in such a folder is named
        return
    try:
        state: dict[str, torch.Tensor] = load_file(weights)
    except FileNotFoundError:
        raise DataError(f"there is no file {weights}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{weights} is not a readable safetensors file: {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the model: {error}") from None
