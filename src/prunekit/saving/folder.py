"""The files of a saved network: what they say of it, checked, and its masked tensors without zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from prunekit.digests import checked_json, read_json_with_digest, read_tensors, validated
from prunekit.errors import DataError, InputError, escaped, shown
from prunekit.files import read_json
from prunekit.models import ModelSettings, create
from prunekit.saving.graph_values import DTYPES

FORMAT = 2
WEIGHTS = "model.safetensors"
DESCRIPTION = "prunekit.json"
GRAPH = "graph.json"
BITS, VALUES = "#mask", "#values"
BUFFER, CONSTANT = "#buffer", "#constant"
_Size = Annotated[int, Field(ge=0, lt=2**48)]
_Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Whole = Annotated[int, Field(gt=-(2**48), lt=2**48)]
_Attribute = _Whole | list[_Whole]  # the axis of a softmax, which is called as a width is, may be -1


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class PrunedTensor(_Strict):
    """A parameter that is saved as its mask and the values that are kept."""

    shape: list[_Size]
    kept: _Size


class BuiltAs(_Strict):
    """How a network is built: a model's settings, the shape of one example, the number of outputs."""

    model: dict[str, Any]
    input_shape: list[Annotated[int, Field(ge=1, lt=2**31)]] = Field(min_length=1, max_length=16)
    outputs: int = Field(ge=1, lt=2**31)

    @property
    def name(self) -> str:
        """The model's name, which may name code of the user's."""
        return str(self.model.get("name", "?"))


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


class Files(_Strict):
    """The digest that each file beside the description carries."""

    weights: _Digest = Field(alias=WEIGHTS)
    graph: _Digest | None = Field(default=None, alias=GRAPH)


class Description(_Strict):
    """What `prunekit.json` says of a saved network.

    Attributes:
        format: of the folder.
        prunekit: the version that wrote it.
        architecture: how the network is built, if it is a model of `prunekit.models`.
        pruned: the parameters that are saved without their zeros.
        tied: names that share the tensor of another name.
        sizes: the attributes of modules that hold sizes.
        shrunk: what was taken out, if it was.
        recipe: what was done.
        history: what each step achieved.
        files: the digests of the other files; that of the graph is there if the network is one.
    """

    format: Literal[2]
    prunekit: str
    architecture: BuiltAs | None
    pruned: dict[str, PrunedTensor]
    tied: dict[str, str]
    sizes: dict[str, dict[str, _Attribute]]
    shrunk: dict[str, Any] | None
    recipe: dict[str, Any] | None
    history: list[dict[str, Any]]
    files: Files


@contextmanager
def consistent(folder: Path, file: str = WEIGHTS) -> Iterator[None]:
    """What fails inside fails because the file and the description disagree."""
    try:
        yield
    except (
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        RuntimeError,
        DataError,
    ) as error:
        raise DataError(f"{folder / file} does not fit {DESCRIPTION}: {one_line(error)}") from None


def describe(folder: Path) -> Description:
    """What `prunekit.json` says, checked.

    Raises:
        DataError: if it is missing, damaged, or of another format.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise DataError(f"{folder} holds no network saved by prunekit: there is no {DESCRIPTION}")
    values = read_json(path)
    _check_format(folder, values)
    values = checked_json(path, values)
    description = validated(Description, values, f"{path} was not written by prunekit")
    tied, sizes = description.tied, description.sizes
    _check_names(path, (*description.pruned, *tied, *tied.values(), *sizes))
    _check_names(path, (name for each in sizes.values() for name in each))
    return description


def wrong_name(names: Iterable[str]) -> str | None:
    """The first that no file may name, since a terminal would obey it or break the line."""
    return next((name for name in names if not name.isprintable()), None)


def wrong_dtype(tensors: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the first tensor of a dtype that is not in `DTYPES`."""
    for name, value in tensors.items():
        if value.dtype not in DTYPES:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
            return (
                f"{name.partition('#')[0]} is of {str(value.dtype).removeprefix('torch.')}: "
                f"the dtypes of a saved network are {allowed}"
            )
    return None


def _check_names(path: Path, names: Iterable[str]) -> None:
    wrong = wrong_name(names)
    if wrong is not None:
        raise DataError(f"{path} names {shown(wrong)}: a name must be of characters that can be printed")


def _check_format(folder: Path, values: Any) -> None:
    """Name the version rather than a digest that other versions did not write."""
    if not isinstance(values, dict) or "format" not in values:
        raise DataError(f"{folder / DESCRIPTION} was not written by prunekit")
    if values["format"] != FORMAT:
        raise DataError(
            f"{folder} is of format {shown(values['format'], 20)}, this prunekit reads format {FORMAT}: "
            f"it was written by prunekit {shown(values.get('prunekit'), 20)}"
        )


def read_weights(folder: Path, description: Description, *, mapped: bool = False) -> dict[str, Tensor]:
    """Everything that the file of the weights holds.

    Args:
        folder: of the files.
        description: what `prunekit.json` says.
        mapped: see `read_tensors`.

    Raises:
        DataError: if the file is missing, damaged or truncated, or a tensor has a name that cannot be printed
            or a dtype that is not in `DTYPES`.
    """
    path = folder / WEIGHTS
    tensors, _ = read_tensors(path, description.files.weights, mapped=mapped)
    _check_names(path, tensors)
    wrong = wrong_dtype(tensors)
    if wrong is not None:
        raise DataError(f"{path}: {wrong}")
    return tensors


def read_graph(folder: Path, description: Description) -> dict[str, Any]:
    """The content of `graph.json`.

    Raises:
        DataError: if it is missing, damaged or truncated.
    """
    path = folder / GRAPH
    if not path.is_file():
        raise DataError(f"{folder} lacks {GRAPH}, which its network is made of")
    saved = read_json_with_digest(path, description.files.graph)
    if set(saved) != {"parameters", "buffers", "graphs"}:
        raise DataError(f"{path} was not written by prunekit")
    for part in ("parameters", "buffers"):
        if not isinstance(saved[part], dict):
            raise DataError(f"{path} was not written by prunekit: {part!r} is no mapping of names")
        _check_names(path, saved[part])
    return saved


def check_saved(folder: Path) -> None:
    """Refuse a folder of which a file is missing, damaged or truncated; no network is made of it.

    Raises:
        DataError: naming the file.
    """
    description = describe(folder)
    read_weights(folder, description, mapped=True)
    if description.files.graph is not None:
        read_graph(folder, description)


def check_free(folder: Path) -> None:
    """Refuse, with an `InputError`, to save where something else lies."""
    if folder.is_file():
        raise InputError(f"{folder} is a file: give a folder to save to")
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if inside and DESCRIPTION not in inside:
        raise InputError(f"{folder} is not empty and holds no earlier save: it will not be replaced")
    foreign = [name for name in inside if name not in (DESCRIPTION, WEIGHTS, GRAPH)]
    if foreign:
        raise InputError(f"{folder} holds {foreign[0]} beside an earlier save: it will not be replaced")


def one_line(error: Exception) -> str:
    """What an error says, in one line that a terminal does not obey."""
    return escaped(" ".join(str(error).split()))[:300]


def pack(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(bits, values): the mask as uint8 of ceil(n / 8) bytes, and the kept values in row-major order."""
    bits = np.packbits(mask.cpu().numpy().reshape(-1))
    return torch.from_numpy(bits), weight.detach().cpu()[mask.cpu()].clone()


def unpack_mask(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of that shape.

    Raises:
        DataError: if the bits are of another length.
    """
    size = int(torch.Size(shape).numel())
    if bits.dtype != torch.uint8 or bits.numel() != -(-size // 8):
        raise DataError(f"a mask of shape {tuple(shape)} needs {-(-size // 8)} bytes, found {bits.numel()}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool)).view(shape)


def unpack(bits: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense tensor: values where the mask is True, zero elsewhere. The inverse of `pack`."""
    mask = unpack_mask(bits, shape)
    if int(mask.sum()) != values.numel():
        raise DataError(f"the mask keeps {int(mask.sum())} weights, but {values.numel()} values are stored")
    weight = torch.zeros(shape, dtype=values.dtype)
    weight[mask] = values
    return weight
