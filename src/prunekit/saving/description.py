"""What is said of a saved network, checked, and its masked tensors without zeros."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from prunekit.errors import DataError, escaped, shown
from prunekit.models import ModelSettings, create
from prunekit.saving.graph_values import DTYPES

BUILT_MIN, BUILT_RATIO = 25_000_000, 1000
"""How many numbers a network may be built with before it is made as small as it was saved: the first, and the
second for each number in its file."""

BITS, VALUES = "#mask", "#values"
BUFFER, CONSTANT = "#buffer", "#constant"
_Size = Annotated[int, Field(ge=0, lt=2**48)]
_Whole = Annotated[int, Field(gt=-(2**48), lt=2**48)]
_Attribute = _Whole | list[_Whole]  # the axis of a softmax, which is called as a width is, may be -1


class StrictModel(BaseModel):
    """A model of values from a file: nothing is converted, nothing more is allowed."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class PrunedTensor(StrictModel):
    """A parameter that is saved as its mask and the values that are kept."""

    shape: list[_Size]
    kept: _Size


class BuiltAs(StrictModel):
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


class Description(StrictModel):
    """What is said of a saved network.

    Attributes:
        architecture: how the network is built, if it is a model of `prunekit.models`.
        pruned: the parameters that are saved without their zeros.
        tied: names that share the tensor of another name.
        sizes: the attributes of modules that hold sizes.
        dropped: by list of layers, the places of those that it was built with and has no more.
        shrunk: what was taken out, if it was.
        recipe: what was done.
        history: what each step achieved.
    """

    architecture: BuiltAs | None
    pruned: dict[str, PrunedTensor]
    tied: dict[str, str]
    sizes: dict[str, dict[str, _Attribute]]
    dropped: dict[str, list[_Size]] = Field(default_factory=dict)
    shrunk: dict[str, Any] | None
    recipe: dict[str, Any] | None
    history: list[dict[str, Any]]


@contextmanager
def consistent(what: str) -> Iterator[None]:
    """What fails inside fails because two parts of what was saved disagree, as `what` begins to say."""
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
        raise DataError(f"{what}: {one_line(error)}") from None


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


def check_names(path: Path, names: Iterable[str]) -> None:
    """Refuse, with a `DataError`, names that cannot be printed."""
    wrong = wrong_name(names)
    if wrong is not None:
        raise DataError(f"{path} names {shown(wrong)}: a name must be of characters that can be printed")


def one_line(error: Exception) -> str:
    """What an error says, in one line that a terminal does not obey."""
    return escaped(" ".join(str(error).split()))[:300]


def without_zeros(weight: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(bits, values): the mask as uint8 of ceil(n / 8) bytes, and the kept values in row-major order."""
    bits = np.packbits(mask.cpu().numpy().reshape(-1))
    return torch.from_numpy(bits), weight.detach().cpu()[mask.cpu()].clone()


def mask_of(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The boolean mask of that shape.

    Raises:
        DataError: if the bits are of another length.
    """
    size = int(torch.Size(shape).numel())
    if bits.dtype != torch.uint8 or bits.numel() != -(-size // 8):
        raise DataError(f"a mask of shape {tuple(shape)} needs {-(-size // 8)} bytes, found {bits.numel()}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=size).astype(bool)).view(shape)


def with_zeros(bits: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The dense tensor: values where the mask is True, zero elsewhere. The inverse of `without_zeros`."""
    mask = mask_of(bits, shape)
    if int(mask.sum()) != values.numel():
        raise DataError(f"the mask keeps {int(mask.sum())} weights, but {values.numel()} values are stored")
    weight = torch.zeros(shape, dtype=values.dtype)
    weight[mask] = values
    return weight
