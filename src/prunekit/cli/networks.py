"""Networks that a command line names, and example inputs for them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunekit.cli.own_code import typed
from prunekit.data import Dataset
from prunekit.errors import DataError, InputError, ModelError
from prunekit.graph import GraphModel
from prunekit.measure import evaluate
from prunekit.models import ModelSettings, create, names
from prunekit.models.create import data_arguments
from prunekit.saving import Architecture, SavedNetwork
from prunekit.saving.folder import DESCRIPTION, WEIGHTS
from prunekit.strict_yaml import load_yaml
from prunekit.trial import check_takes

Model = Annotated[
    str, typer.Argument(help="A saved folder, a model's name, module:function, or {name: mlp, ...}.")
]
Data = Annotated[str | None, typer.Option(help="Dataset to test on; gives the shapes too.")]
Weights = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a saved folder.")]
Ignore = Annotated[
    list[str] | None, typer.Option(help="A layer, or pattern, that keeps its sizes; may be repeated.")
]
Residual = Annotated[bool, typer.Option("--residual", help="Let residual streams lose units, too.")]
InputShape = Annotated[
    str | None, typer.Option(help="Shape of one example, such as 3,32,32, without a dataset.")
]
Outputs = Annotated[
    int, typer.Option(min=1, help="Number of outputs, without a dataset, of a model that takes it.")
]

TRACED = 2
"""Examples that a network is traced with: of one, its axis could be taken for any other of one entry."""

Tokens = Annotated[
    int | None, typer.Option(min=1, help="Inputs are whole numbers below this one, such as tokens of a text.")
]


@dataclass(frozen=True)
class Sizes:
    """What a model takes from its dataset: the shape of one example, and the number of outputs."""

    input_shape: tuple[int, ...]
    outputs: int


@dataclass(frozen=True)
class Network:
    """A network and, where they are known, how it is built and the folder that its weights come from."""

    model: nn.Module
    architecture: Architecture | None
    saved: SavedNetwork | None = None


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
        network = replace(network, saved=_load_weights(network.model, weights))
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
    saved = SavedNetwork(text)
    if saved.holds_graph:
        return Network(saved.load(), None, saved)
    built = saved.description.architecture
    own = "module:function" if built is None else built.name
    if ":" in own:  # a file names no code to run
        raise InputError(
            f"{text} does not hold the code of its network: write {own} in its place, and --weights {text}"
        )
    return Network(saved.load(), saved.architecture(), saved)


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


def _load_weights(model: nn.Module, weights: Path) -> SavedNetwork | None:
    """Fill a network; the folder of `save_pretrained` that the weights come from, if they do."""
    folder = weights.parent if weights.name == WEIGHTS else weights
    if folder.is_dir() and (folder == weights or (folder / DESCRIPTION).is_file()):
        saved = SavedNetwork(folder)  # also where the file in such a folder is named
        saved.load(model)
        return saved
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
    return None


def sizes_of(input_shape: str | None, outputs: int) -> Sizes | None:
    """What stands in for a dataset's sizes.

    Raises:
        InputError: if the shape is none.
    """
    return None if input_shape is None else Sizes(_shape(input_shape), outputs)


def example_shape(network: Network, data: Dataset | None, sizes: Sizes | None) -> tuple[int, ...]:
    """The shape of one example.

    Raises:
        InputError: if nothing tells it.
    """
    for known in (data, sizes, network.architecture):
        if known is not None:
            return known.input_shape
    if isinstance(network.model, GraphModel) and (found := network.model.input_shapes[0]) is not None:
        return found[1:]
    raise InputError("the shape of an example is not known: add --data or --input-shape")


def examples(
    network: Network, name: str, data: Dataset | None, sizes: Sizes | None, *, batch: int, tokens: int | None
) -> Tensor:
    """(batch, ...) the first examples of the dataset's test part, or drawn numbers of the known shape.

    Args:
        network: which must take them.
        name: what the person calls it.
        data: the dataset, if there is one.
        sizes: what stands in for it.
        batch: how many.
        tokens: above all whole numbers that are drawn; None for real numbers.

    Raises:
        InputError: if the shape is not known, or the dataset has fewer examples.
        ModelError: if the network fails on them.
    """
    inputs = _examples(network, data, sizes, batch, tokens)
    try:
        check_takes(network.model, name, inputs)
    except ModelError as error:
        if inputs.is_floating_point() and any(isinstance(m, nn.Embedding) for m in network.model.modules()):
            raise ModelError(f"{error}; if it takes whole numbers, such as tokens, add --tokens") from error
        raise
    return inputs


def batch_of(network: Network, asked: int | None, default: int) -> int:
    """How many examples a pass has; an exported graph takes only as many as it was exported with."""
    if asked is None and isinstance(network.model, GraphModel) and network.model.input_shapes[0]:
        return network.model.input_shapes[0][0]
    return asked or default


def _examples(
    network: Network, data: Dataset | None, sizes: Sizes | None, batch: int, tokens: int | None
) -> Tensor:
    if data is not None:
        if len(data.test.inputs) < batch:
            raise InputError(f"--batch {batch}: the dataset has {len(data.test.inputs)} test examples")
        return data.test.inputs[:batch]
    shape = (batch, *example_shape(network, data, sizes))
    generator = torch.Generator().manual_seed(0)
    if tokens is not None:
        return torch.randint(tokens, shape, generator=generator)
    return torch.randn(shape, generator=generator)


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r}: write whole numbers joined by commas, such as 3,32,32")
    return shape


def quality(model: nn.Module, data: Dataset | None) -> dict[str, float]:
    """Accuracy, top-5 accuracy where there are more than five classes, and loss; or the squared error.

    Empty without data, and for an exported graph, which takes batches of one size only.
    """
    if data is None or isinstance(model, GraphModel):
        return {}
    found = evaluate(model, data.test.inputs, data.test.targets, task=data.task)
    values = (
        {"test_mse": found.mse}
        if data.task == "regression"
        else {"test_accuracy": found.accuracy, "test_top5": found.top5, "test_loss": found.loss}
    )
    return {name: value for name, value in values.items() if value is not None}


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir())
