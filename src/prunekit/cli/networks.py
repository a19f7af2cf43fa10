"""From the words on a command line to a network: a model by name, a user's own, or a saved folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from prunekit.data import Dataset
from prunekit.errors import DataError, InputError, ModelError
from prunekit.models import ModelSettings, create
from prunekit.saving import Architecture, load_architecture, load_pretrained


@dataclass(frozen=True)
class Network:
    """A network and, where it is known, how it is built."""

    model: nn.Module
    architecture: Architecture | None
    saved: Path | None


def open_network(
    text: str,
    *,
    data: Dataset | None,
    input_shape: tuple[int, ...] | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Network:
    """The network that a person means.

    Args:
        text: a folder that `save_pretrained` wrote, the name of a model, `module:function`, or a model's
            settings as YAML, such as '{name: mlp, hidden: [64, 32]}'.
        data: the dataset, whose shapes the named models take.
        input_shape: of one example, if there is no dataset.
        weights: a folder of `save_pretrained`, or a safetensors file with a state dict.
        seed: of the initial values, if there are no weights.

    Raises:
        InputError, ModelError, DataError: whatever is wrong, in one line.
    """
    if Path(text).is_dir():
        return Network(load_pretrained(text), load_architecture(Path(text)), Path(text))
    settings = _settings(text)
    shape = data.input_shape if data is not None else input_shape
    if shape is None and ":" not in settings.name:
        raise InputError(f"the model {settings.name} takes its shapes from a dataset: add --data")
    outputs = data.outputs if data is not None else 1
    model = create(settings, shape or (1,), outputs, seed=seed)
    architecture = None if data is None else Architecture(settings, data.input_shape, data.outputs)
    if weights is not None:
        _load_weights(model, weights)
    return Network(model, architecture, None)


def _settings(text: str) -> ModelSettings:
    if not text.lstrip().startswith("{"):
        if "/" in text and ":" not in text:
            raise InputError(f"{text} is no folder of a saved network")
        return ModelSettings.parse(text)
    try:
        values: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"the model {text!r} is not valid YAML: {' '.join(str(error).split())}") from None
    return ModelSettings.parse(values)


def _load_weights(model: nn.Module, weights: Path) -> None:
    if weights.is_dir():
        load_pretrained(weights, model)
        return
    try:
        state = load_file(weights)
    except FileNotFoundError:
        raise DataError(f"there is no file {weights}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{weights} is not a readable safetensors file: {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the model: {' '.join(str(error).split())}") from None
