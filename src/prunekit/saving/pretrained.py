"""A pruned network as a folder: `model.safetensors` and `prunekit.json`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunekit.errors import DataError, InputError, ModelError
from prunekit.files import read_json, replacing_folder, write_json
from prunekit.masks import Masks
from prunekit.models import ModelSettings, create
from prunekit.pruning import Pruned
from prunekit.saving.packing import pack, unpack, unpack_mask
from prunekit.structure import resize_to
from prunekit.targets import unwrap
from prunekit.version import __version__

FORMAT = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "prunekit.json"
BITS, VALUES = "#mask", "#values"


@dataclass(frozen=True)
class Architecture:
    """How a network is built, so that it can be loaded without its code being named again.

    Attributes:
        model: the settings of a model of `prunekit.models`.
        input_shape: of one example.
        outputs: the number of classes, or of regression targets.
    """

    model: ModelSettings
    input_shape: tuple[int, ...]
    outputs: int

    def build(self) -> nn.Module:
        """A network of this architecture; its initial values are of no importance."""
        return create(self.model, self.input_shape, self.outputs, seed=0)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"model": self.model.to_dict(), "input_shape": list(self.input_shape), "outputs": self.outputs}


def save_pretrained(
    pruned: Pruned | nn.Module,
    folder: str | Path,
    *,
    masks: Masks | None = None,
    architecture: Architecture | None = None,
) -> Path:
    """Write a network to a folder; removed weights cost one bit each. An earlier save there is replaced.

    Args:
        pruned: what `prune()` returned, or a model.
        folder: where to; must be new, empty, or hold an earlier save.
        masks: which weights are removed, if a plain model is given.
        architecture: for models of `prunekit.models`, so that loading needs no model.

    Raises:
        InputError: if the folder holds something else, or the masks are another model's.
        ModelError: if the model's state holds something other than tensors.
        OSError: if it cannot be written; an earlier save is then as it was, and nothing is left behind.
    """
    folder = Path(folder)
    check_free(folder)
    model = unwrap(pruned.model if isinstance(pruned, Pruned) else pruned)
    masks = pruned.masks if isinstance(pruned, Pruned) else masks or Masks({})
    masks.parameters(model)
    tensors, tied = _tensors(model.state_dict(), masks)
    description = {
        "format": FORMAT,
        "prunekit": __version__,
        "architecture": architecture.to_dict() if architecture else None,
        "pruned": {
            name: {"shape": list(mask.shape), "kept": int(mask.sum())} for name, mask in masks.items()
        },
        "tied": tied,
        "recipe": pruned.recipe.to_dict() if isinstance(pruned, Pruned) else None,
        "history": [asdict(record) for record in pruned.history] if isinstance(pruned, Pruned) else [],
    }
    with replacing_folder(folder) as temporary:
        save_file(tensors, temporary / WEIGHTS)
        write_json(temporary / DESCRIPTION, {**description, "sha256": _sha256(temporary / WEIGHTS)})
    return folder


def load_pretrained(folder: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Load a network that `save_pretrained` wrote; removed weights are zeros.

    Args:
        folder: the folder.
        model: a freshly built network of the same class; only needed if the save names no architecture.
            Parameters that were tied when they were saved are tied in it, too. Layers that were shrunk
            before the save are made as small in it, as new parameters.

    Raises:
        DataError: if a file is missing, damaged, truncated, or not of prunekit.
        InputError: if the save names no architecture, or one of the user's, and no model is given.
        ModelError: if the weights do not fit the model; it is left as it was.
    """
    folder = Path(folder)
    description, tensors = _read(folder)
    if model is None:
        model = _build(folder, description)
    state = _dense(folder, description, tensors)
    _check_names(unwrap(model), state, folder)
    _fit(unwrap(model), state, folder)
    unwrap(model).load_state_dict(state)
    for name, source in description["tied"].items():
        _tie(unwrap(model), name, source)
    return model


def load_masks(folder: str | Path) -> Masks:
    """The masks of a network that `save_pretrained` wrote, to go on pruning or training with.

    Raises:
        DataError: as `load_pretrained`.
    """
    folder = Path(folder)
    description, tensors = _read(folder)
    with _consistent(folder):
        return Masks(
            {
                name: unpack_mask(tensors[name + BITS], tuple(entry["shape"]))
                for name, entry in description["pruned"].items()
            }
        )


def load_architecture(folder: str | Path) -> Architecture | None:
    """How the network in a folder is built, if its save says so.

    Raises:
        DataError: as `load_pretrained`.
    """
    saved = _describe(Path(folder))["architecture"]
    if saved is None:
        return None
    return Architecture(ModelSettings.parse(saved["model"]), tuple(saved["input_shape"]), saved["outputs"])


def _tensors(state: Mapping[str, Tensor], masks: Masks) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What goes into the file, and the names that share the tensor of another name."""
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name in sorted(
        state, key=lambda name: name not in masks
    ):  # a tied weight is stored where its mask is
        value = state[name]
        if not isinstance(value, Tensor):
            raise ModelError(
                f"{name} of the model's state is a {type(value).__name__}: only tensors are saved"
            )
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if value.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        if name in masks:
            tensors[name + BITS], tensors[name + VALUES] = pack(value, masks[name])
        else:
            tensors[name] = value.detach().cpu().contiguous().clone()
    return tensors, tied


def _dense(folder: Path, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name: value for name, value in tensors.items() if not name.endswith((BITS, VALUES))}
    with _consistent(folder):
        for name, entry in description["pruned"].items():
            state[name] = unpack(tensors[name + BITS], tensors[name + VALUES], tuple(entry["shape"]))
        for name, source in description["tied"].items():
            state[name] = state[source]
    return state


@contextmanager
def _consistent(folder: Path) -> Iterator[None]:
    """What fails inside fails because the two files disagree."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, DataError) as error:
        raise DataError(f"{folder / WEIGHTS} does not fit {DESCRIPTION}: {error}") from None


def _tie(model: nn.Module, name: str, source: str) -> None:
    """Put the parameter `source` in the place of `name`, as it was when the two were saved."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters or source not in parameters or parameters[name] is parameters[source]:
        return
    layer, _, short = name.rpartition(".")
    setattr(model.get_submodule(layer), short, parameters[source])


def _describe(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        raise DataError(f"{folder} holds no network saved by prunekit: there is no {DESCRIPTION}")
    description = read_json(folder / DESCRIPTION)
    wanted = {"format", "sha256", "pruned", "tied", "architecture"}
    if not isinstance(description, dict) or not wanted <= set(description):
        raise DataError(f"{folder / DESCRIPTION} was not written by prunekit")
    if description["format"] != FORMAT:
        raise DataError(
            f"{folder} is of format {description['format']}, this prunekit reads format {FORMAT}: "
            f"it was written by prunekit {description.get('prunekit', '?')}"
        )
    return description


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    description = _describe(folder)
    weights = folder / WEIGHTS
    try:
        if _sha256(weights) != description["sha256"]:
            raise DataError(
                f"{weights} is damaged or truncated: its checksum is not the one in {DESCRIPTION}"
            )
        return description, load_file(weights)
    except OSError as error:
        raise DataError(f"cannot read {weights}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(f"{weights} is not a safetensors file: {error}") from None


def _build(folder: Path, description: Mapping[str, Any]) -> nn.Module:
    saved = description["architecture"]
    if saved is None:
        raise InputError(
            f"{folder} does not say how its network is built: give load_pretrained(folder, model)"
        )
    with _consistent(folder):
        settings = ModelSettings.parse(saved["model"])
        shape, outputs = tuple(saved["input_shape"]), int(saved["outputs"])
    if ":" in settings.name:  # a file must not decide which code is imported
        raise InputError(
            f"the network in {folder} is of {settings.name}: build it and give load_pretrained(folder, model)"
        )
    return Architecture(settings, shape, outputs).build()


def _check_names(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    if missing or extra:
        raise ModelError(
            f"the network in {folder} is another one: "
            + "; ".join(
                f"{what} {', '.join(names[:3])}"
                for what, names in (("the file lacks", missing), ("the model lacks", extra))
                if names
            )
        )


def _fit(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Make the model's layers as small as the saved ones, if units were taken out before it was saved."""
    own = model.state_dict()
    name = next((name for name, value in own.items() if value.shape != state[name].shape), None)
    if name is None:
        return
    try:
        resize_to(model, {name: value.shape for name, value in state.items()})
    except ModelError as error:
        raise ModelError(
            f"{name} has shape {tuple(own[name].shape)} in the model, {tuple(state[name].shape)} in "
            f"{folder}, and taking units out of the model does not give it: {error}"
        ) from None


def check_free(folder: Path) -> None:
    """Refuse, with an `InputError`, to save where something else lies."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder to save to")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if inside and DESCRIPTION not in inside:
        raise InputError(f"{folder} is not empty and holds no earlier save: it will not be replaced")
    foreign = [name for name in inside if name not in (DESCRIPTION, WEIGHTS)]
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]} beside an earlier save: it will not be replaced")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
