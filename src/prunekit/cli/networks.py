"""Networks that a command line names, with the examples and the quality that their data gives."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from prunekit.cli.options import typed
from prunekit.data import Dataset, load
from prunekit.errors import DataError, InputError, ModelError, instead, shown
from prunekit.graph import GraphModel
from prunekit.measure import evaluate
from prunekit.models import ModelSettings, create, names
from prunekit.models.create import data_arguments
from prunekit.packing import is_packed
from prunekit.plain_yaml import load_yaml
from prunekit.pruning.calibration import check_takes
from prunekit.saving import Architecture, SavedNetwork
from prunekit.saving.folder import DESCRIPTION, WEIGHTS

TRACED = 2
"""Examples that a network is traced with: of one, its axis could be taken for any other of one entry."""


@dataclass(frozen=True)
class Network:
    """A network that a person has named, and what is known of it.

    Attributes:
        name: what the person calls it.
        model: the network.
        architecture: how it is built; None if that is not known.
        saved: the folder or the packed file that its weights come from, if they do.
        data: the dataset that was named with it, whose examples it takes.
        input_shape: of one example; None if nothing tells it.
    """

    name: str
    model: nn.Module
    architecture: Architecture | None
    saved: SavedNetwork | None
    data: Dataset | None
    input_shape: tuple[int, ...] | None

    def batch(self, asked: int | None, default: int) -> int:
        """How many examples a pass has; some exported graphs take only as many as they were exported with."""
        return asked or only_batch(self.model) or default

    def examples(self, batch: int, tokens: int | None) -> Tensor:
        """(batch, ...) the first examples of the dataset's test part, or drawn numbers of the known shape.

        Args:
            batch: how many.
            tokens: above all whole numbers that are drawn; None for real numbers.

        Raises:
            InputError: if the shape is not known, or the dataset has fewer examples.
            ModelError: if the network fails on them.
        """
        inputs = self._examples(batch, tokens)
        try:
            check_takes(self.model, self.name, inputs)
        except ModelError as error:
            if inputs.is_floating_point() and any(isinstance(m, nn.Embedding) for m in self.model.modules()):
                raise ModelError(
                    f"{error}; if it takes whole numbers, such as tokens, add --tokens"
                ) from error
            raise
        return inputs

    def _examples(self, batch: int, tokens: int | None) -> Tensor:
        if self.data is not None:
            if len(self.data.test.inputs) < batch:
                raise InputError(
                    f"--batch {batch}: the dataset has {len(self.data.test.inputs)} test examples"
                )
            return self.data.test.inputs[:batch]
        if self.input_shape is None:
            raise InputError("the shape of an example is not known: add --data or --input-shape")
        generator = torch.Generator().manual_seed(0)
        if tokens is not None:
            return torch.randint(tokens, (batch, *self.input_shape), generator=generator)
        return torch.randn(batch, *self.input_shape, generator=generator)

    def quality(self, model: nn.Module | None = None) -> dict[str, float]:
        """Accuracy, top-5 accuracy where there are more than five classes, and loss; or the squared error.

        Empty without data, and for an exported graph that takes batches of one size only.

        Args:
            model: what has become of the network; by default as it is.
        """
        model = self.model if model is None else model
        if self.data is None or only_batch(model) is not None:
            return {}
        found = evaluate(model, self.data.test.inputs, self.data.test.targets, task=self.data.task)
        if self.data.task == "regression":
            return {"test_mse": found.mse}
        values = {"test_accuracy": found.accuracy, "test_top5": found.top5, "test_loss": found.loss}
        return {name: value for name, value in values.items() if value is not None}

    def loading(self, folder: Path, *, as_graph: bool = False) -> str:
        """The line of Python that loads what was saved of it in a folder."""
        return f'prunekit.load_pretrained("{folder}"{"" if self._is_known or as_graph else ", model"})'

    def shrinking(self, folder: Path) -> str:
        """The command that takes out what was removed of it in a folder, and saves the rest in another."""
        if self._is_known:
            words = [str(folder)]
        else:
            shape = ["--data", self.data.name] if self.data is not None else ["--input-shape", "SHAPE"]
            words = [self.name, "--weights", str(folder), *shape]
        return f"prunekit shrink {shlex.join(words)} --out {shlex.quote(f'{folder}-shrunk')}"

    @property
    def _is_known(self) -> bool:
        """Whether a saved folder says how it is built."""
        return self.architecture is not None and ":" not in self.architecture.model.name


def open_network(
    text: str,
    *,
    data: str | None,
    data_dir: Path | None,
    weights: Path | None,
    input_shape: str | None = None,
    outputs: int = 1,
    seed: int = 0,
) -> Network:
    """The network that a person means.

    Args:
        text: a folder that `save_pretrained` wrote, a file that `pack` wrote, the name of a model,
            `module:function`, or a model's settings as YAML, such as '{name: mlp, hidden: [64, 32]}'.
        data: the dataset, by its name or as `module:function`, whose sizes the named models take; the network
            must be able to take its examples.
        data_dir: where datasets lie.
        weights: a folder of `save_pretrained`, a file of `pack`, or a safetensors file with a state dict.
        input_shape: without a dataset, the shape of one example, such as 3,32,32.
        outputs: without a dataset, the number of outputs.
        seed: of the initial values, if there are no weights.

    Raises:
        InputError, ModelError, DataError: whatever is wrong, in one line.
    """
    sizes = None if input_shape is None else (_shape(input_shape), outputs)
    with typed(data):
        found = None if data is None else load(data, data_dir)
    if found is not None:
        sizes = found.input_shape, found.outputs
    model, architecture, saved = _saved(text, weights) if is_saved(text) else _new(text, sizes, seed)
    if weights is not None:
        saved = _load_weights(model, weights)
    graph_shape = _graph_shape(model)
    if found is not None:
        check_takes(model, text, found.test.inputs[: only_batch(model) or TRACED])
    shape = graph_shape[1:] if graph_shape else None
    if sizes is not None:
        shape, _ = sizes
    elif architecture is not None:
        shape = architecture.input_shape
    return Network(text, model, architecture, saved, found, shape)


def is_saved(text: str) -> bool:
    """Whether a saved folder or a packed file is meant; what only happens to have a model's name is not."""
    path = Path(text)
    return is_packed(path) or (path.is_dir() and (text not in names() or (path / DESCRIPTION).is_file()))


_Opened = tuple[nn.Module, Architecture | None, SavedNetwork | None]


def _saved(text: str, weights: Path | None) -> _Opened:
    if weights is not None:
        raise InputError(f"{text} is a saved network with weights of its own: leave out --weights")
    saved = SavedNetwork(text)
    if saved.holds_graph:
        return saved.load(), None, saved
    built = saved.description.architecture
    own = "module:function" if built is None else built.name
    if ":" in own:  # a file names no code to run
        raise InputError(
            f"{text} does not hold the code of its network: write {own} in its place, and --weights {text}"
        )
    return saved.load(), saved.architecture(), saved


def _new(text: str, sizes: tuple[tuple[int, ...], int] | None, seed: int) -> _Opened:
    settings = _settings(text)
    if sizes is not None:
        architecture = Architecture(settings, *sizes)
        return create(settings, *sizes, seed=seed), architecture, None
    if data_arguments(settings.name, settings.factory, (1,), 1):
        raise InputError(
            f"the model {settings.name} takes its shapes from a dataset: add --data or, where the command "
            "has it, --input-shape"
        )
    return create(settings, (1,), 1, seed=seed), None, None


def _settings(text: str) -> ModelSettings:
    values: Any = {"name": text}
    if text.lstrip().startswith("{"):
        try:
            values = load_yaml(text)
        except InputError as error:
            raise InputError(f"the model {text!r} is not valid YAML: {error}") from None
    elif text not in names() and Path(text).is_file():
        raise InputError(
            f"{text} is no file that prunekit pack wrote; one of weights goes with --weights, beside a model"
        )
    elif "/" in text and ":" not in text:
        raise InputError(f"there is no folder {text}")
    elif text not in names() and ":" not in text:
        raise InputError(
            f"there is no folder, packed file or model {shown(text)}{instead(text, names(), 'models')}, "
            "and module:function for a model of your own"
        )
    with typed(values.get("name") if isinstance(values, dict) else None):
        return ModelSettings.parse(values)


def _load_weights(model: nn.Module, weights: Path) -> SavedNetwork | None:
    """Fill a network; the saved network that the weights come from, if they do."""
    folder = weights.parent if weights.name == WEIGHTS else weights
    is_folder = folder.is_dir() and (folder == weights or (folder / DESCRIPTION).is_file())
    if is_folder or is_packed(folder):
        saved = SavedNetwork(folder)  # also where the file in such a folder is named
        saved.load(model)
        return saved
    try:
        state = load_file(weights)
    except FileNotFoundError:
        raise DataError(f"there is no file {weights}") from None
    except (SafetensorError, OSError) as error:
        raise DataError(f"{weights} is not a readable safetensors file: {error}") from None
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{weights} does not fit the model: {error}") from None
    return None


def only_batch(model: nn.Module) -> int | None:
    """The number of examples that an exported graph is bound to; None for other networks."""
    return model.only_batch if isinstance(model, GraphModel) else None


def _graph_shape(model: nn.Module) -> tuple[int, ...] | None:
    """(N, ...) what an exported graph takes; None for other networks, and if the graph takes no tensor."""
    return model.input_shapes[0] if isinstance(model, GraphModel) else None


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise InputError(f"--input-shape {text!r}: write whole numbers joined by commas, such as 3,32,32")
    return shape


def folder_bytes(folder: Path) -> int:
    """The bytes of the files in a folder, or of a file."""
    if folder.is_file():
        return folder.stat().st_size
    return sum(path.stat().st_size for path in folder.iterdir())
