"""What a packed file says of its network: what follows from the architecture is not said again."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.compress.huffman import read_varint, varint
from prunekit.digests import validated
from prunekit.errors import DataError, InputError, ModelError
from prunekit.files import MAX_BYTES, finite, parse_json
from prunekit.graph import restore_sizes, size_attributes
from prunekit.models import ModelSettings, without_data
from prunekit.packing.tensor_codes import Form
from prunekit.saving.contents import beside_state
from prunekit.saving.description import BUFFER, Architecture, BuiltAs, Description, check_names
from prunekit.saving.graph_values import DTYPES
from prunekit.saving.saved_files import Contents

MAX_DIMENSIONS = 32
"""The most dimensions of a tensor; NumPy has no more everywhere."""

DICTIONARY = (
    b'"shrunk":{"recipe":{"history":[{"step":1,"sparsity":"graph":{"parameters":{"buffers":{"graphs":[{"inputs":'
    b'"outputs":"shapes":"dtypes":"takes":"gives":"nodes":[{"call":"args":[{"node":"kwargs":{"returns":'
    b'"num_features":"in_features":"out_features":"in_channels":"out_channels":"groups":1,"sizes":{"tied":{'
    b'.running_mean",".running_var",".num_batches_tracked",".bias",".weight","names":["without":["with":['
    b'{"model":{"name":"char_transformer","width":64,"heads":4,"layers":2},"input_shape":['
    b'{"model":{"name":"googlenet_small","stem":[16,16,48],"blocks":[[24,24,32,8,16,16],[32,32,48,8,24,24],'
    b'[48,48,96,16,32,32]]},"input_shape":[3,32,32],"outputs":10}'
    b'{"model":{"name":"maxout_lenet5","pieces":4,"dropout":0.0},"input_shape":[1,28,28],"outputs":10}'
    b'{"model":{"name":"vgg_small","widths":[[64,64],[128,128],[256,256]]},"input_shape":[3,32,32],"outputs":10}'
    b'{"model":{"name":"resnet","depth":20,"width":16},"input_shape":[3,32,32],"outputs":10}'
    b'{"model":{"name":"resnet20"},"input_shape":[3,32,32],"outputs":100}'
    b'{"model":{"name":"mlp","hidden":[100],"activation":"relu","output_activation":"identity"},"input_shape":['
    b'{"model":{"name":"lenet_300_100"},"input_shape":[784],"outputs":10}'
    b'{"model":{"name":"lenet_300_100"},"input_shape":[1,28,28],"outputs":10}'
    b'{"model":{"name":"lenet5"},"input_shape":[1,28,28],"outputs":10}'
)
"""What deflate may point back to; part of the format."""


class MaskKind(IntEnum):
    """What is known of the mask of a tensor."""

    NONE = 0
    NONZERO = 1
    """It keeps the values whose bits are not all 0."""
    OWN = 2
    """It stands among the levels."""


@dataclass(frozen=True)
class TensorRecord:
    """How a tensor stands in a packed file.

    Attributes:
        name: its full name, with the endings that the tensors of a saved network have.
        shape: of it.
        dtype: of it.
        form: of its bytes.
        stored: see `CodedTensor`.
        mask: what is known of its mask.
        plane: the height of the plane in which the inputs of a matrix are laid out; 0 for none.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    form: Form = Form.ZEROS
    stored: int = 0
    mask: MaskKind = MaskKind.NONE
    plane: int = 0

    @property
    def memory(self) -> int:
        """The bytes that the tensor takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def real_shape(self) -> tuple[int, ...]:
        """The shape of its real and imaginary parts, if it has such, else its own."""
        return (*self.shape, 2) if self.dtype.is_complex else self.shape

    @property
    def real_dtype(self) -> torch.dtype:
        """The dtype of these."""
        return self.dtype.to_real() if self.dtype.is_complex else self.dtype


@dataclass(frozen=True)
class Head:
    """What a packed file says before its tensors.

    Attributes:
        description: of the network; of pruned tensors neither shapes nor counts, which the tensors have.
        graph: see `Contents`.
        published: whether levels are coded by gaps and Huffman codes.
        records: of the tensors, in order.
    """

    description: Description
    graph: Mapping[str, Any] | None
    published: bool
    records: Sequence[TensorRecord]


@dataclass(frozen=True)
class _Expected:
    """What an architecture lets expect: its tensors in order, and its network without data."""

    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]] = field(default_factory=dict)
    model: nn.Module | None = None

    @classmethod
    def of(cls, built: BuiltAs | None) -> _Expected:
        """Nothing, if there is no architecture, or its code is the user's.

        Raises:
            InputError, ModelError: if it describes no network.
        """
        if built is None or ":" in built.name:
            return cls()
        settings = ModelSettings.parse(built.model)
        with without_data():
            model = Architecture(settings, tuple(built.input_shape), built.outputs).build()
        tensors = {**model.state_dict(), **beside_state(model)}
        return cls({name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}, model)

    def sizes(self, records: Sequence[TensorRecord], tied: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        """The sizes of a network of this architecture with tensors of these shapes, as far as they follow."""
        if self.model is None:
            return {}
        shapes = {record.name.removesuffix(BUFFER): record.shape for record in records}
        shapes |= {name: shapes[source] for name, source in tied.items() if source in shapes}
        own = {name.removesuffix(BUFFER): shape for name, (shape, _) in self.tensors.items()}
        if shapes != own:
            with suppress(ModelError, LookupError, TypeError, ValueError, AttributeError, RuntimeError):
                restore_sizes(self.model, shapes)  # else they are said
        return size_attributes(self.model)


def order_of(contents: Contents) -> Sequence[str]:
    """The names of a network's tensors in its own order, where its architecture or its graph tells it.

    Raises:
        InputError, ModelError: if the architecture describes no network.
    """
    if contents.graph is not None:
        return [*contents.graph["parameters"], *contents.graph["buffers"]]
    return list(_Expected.of(contents.description.architecture).tensors)


def head_to_bytes(head: Head) -> bytes:
    """The head, deflated.

    Raises:
        InputError, ModelError: if the architecture describes no network.
    """
    description = head.description
    expected = _Expected.of(description.architecture)
    said: dict[str, Any] = {}
    if description.architecture is not None:
        said |= description.architecture.model_dump()
    names = [record.name for record in head.records]
    own = [name for name in expected.tensors if name not in description.tied]
    if names != own:
        said |= {
            "without": [name for name in own if name not in names],
            "with": [name for name in names if name not in expected.tensors],
        }
    for key in ("tied", "dropped", "shrunk", "recipe", "history"):
        if getattr(description, key):
            said[key] = getattr(description, key)
    following = expected.sizes(head.records, description.tied)
    sizes = description.sizes
    if set(sizes) != set(following):
        said["all_sizes"] = sizes
    elif sizes != following:
        said["sizes"] = {place: each for place, each in sizes.items() if each != following[place]}
    if head.graph is not None:
        said["graph"] = head.graph
    if head.published:
        said["published"] = True
    text = json.dumps(finite(said), separators=(",", ":"), allow_nan=False)
    records = b"".join(_record_to_bytes(record, expected.tensors.get(record.name)) for record in head.records)
    press = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zdict=DICTIONARY)
    return press.compress(text.encode() + b"\0" + records) + press.flush()


def head_from_bytes(data: bytes, path: Path) -> tuple[Head, bytes]:
    """The head, and the bytes behind it.

    Args:
        data: that begins with a head.
        path: of the file, for messages.

    Raises:
        DataError: if it is no head, or describes no network.
    """
    unpress = zlib.decompressobj(-15, zdict=DICTIONARY)
    try:
        inflated = unpress.decompress(data, MAX_BYTES)
    except zlib.error as error:
        raise DataError(f"{path} is damaged: what it says cannot be inflated ({error})") from None
    if not unpress.eof:
        raise DataError(f"{path} is damaged, or says more than {MAX_BYTES >> 20} MiB of its network")
    text, _, records = inflated.partition(b"\0")
    try:
        said = parse_json(text.decode(), path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is damaged: not valid JSON ({error})") from None
    if not isinstance(said, dict):
        raise DataError(f"{path} was not written by prunekit")
    return _head(said, records, path), unpress.unused_data


def _head(said: dict[str, Any], records: bytes, path: Path) -> Head:
    place = f"{path} was not written by prunekit"
    graph, published = said.pop("graph", None), said.pop("published", False) is True
    whole = "all_sizes" in said
    without, beside = _names(said, "without", place), _names(said, "with", place)
    keys = ("model", "input_shape", "outputs")
    built = {key: said.pop(key) for key in keys if key in said}
    sizes = said.pop("all_sizes" if whole else "sizes", {})
    given = {"architecture": built or None, "pruned": {}, "sizes": sizes}
    absent: dict[str, Any] = {"tied": {}, "shrunk": None, "recipe": None, "history": []}
    description = validated(Description, {**absent, **said, **given}, place)
    tied = description.tied
    try:
        expected = _Expected.of(description.architecture)
    except (InputError, ModelError) as error:
        raise DataError(f"{path} describes no network: {error}") from None
    names = [name for name in expected.tensors if name not in {*tied, *without}] + beside
    check_names(path, (*names, *tied, *tied.values(), *description.sizes, *description.dropped))
    check_names(path, (name for each in description.sizes.values() for name in each))
    if len(set(names)) < len(names):
        raise DataError(f"{path} is damaged: a tensor is there twice")
    found, at = [], 0
    for name in names:
        record, at = _record_from_bytes(name, expected.tensors.get(name), records, at, path)
        found.append(record)
    if at != len(records):
        raise DataError(f"{path} is damaged: it says more of its tensors than it has")
    sizes = description.sizes if whole else {**expected.sizes(found, tied), **description.sizes}
    return Head(description.model_copy(update={"sizes": sizes}), graph, published, found)


def _names(said: dict[str, Any], key: str, place: str) -> list[str]:
    found = said.pop(key, [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{place}: {key!r} is no list of names")
    return found


# ---- records of tensors ------------------------------------------------------------------------------------


def _record_to_bytes(record: TensorRecord, expected: tuple[tuple[int, ...], torch.dtype] | None) -> bytes:
    told = expected != (record.shape, record.dtype)
    found = bytes([record.form | record.stored << 3 | record.mask << 5 | told << 7])
    if told:
        found += bytes([len(record.shape), DTYPES.index(record.dtype)])
        found += b"".join(map(varint, record.shape))
    if record.form.has_levels and len(record.shape) == 2:
        found += varint(record.plane)
    return found


def _record_from_bytes(
    name: str, expected: tuple[tuple[int, ...], torch.dtype] | None, data: bytes, at: int, path: Path
) -> tuple[TensorRecord, int]:
    try:
        first, at = data[at], at + 1
        shape, dtype = expected or ((), torch.float32)
        if first >> 7:
            dimensions, dtype = data[at], DTYPES[data[at + 1]]
            at += 2
            sides = []
            for _ in range(dimensions):
                side, at = read_varint(data, at)
                sides.append(side)
            shape = tuple(sides)
        record = TensorRecord(name, shape, dtype, Form(first & 7), first >> 3 & 3, MaskKind(first >> 5 & 3))
        if record.form.has_levels and len(shape) == 2:
            plane, at = read_varint(data, at)
            record = replace(record, plane=plane)
    except (IndexError, ValueError, DataError):
        raise DataError(f"{path} is damaged: what it says of {name} is not to be understood") from None
    if len(shape) > MAX_DIMENSIONS or math.prod(max(side, 1) for side in shape) >= 1 << 48:
        raise DataError(f"{path} is damaged: {name} would be of shape {list(shape)[:MAX_DIMENSIONS]}")
    if not expected and not first >> 7:
        raise DataError(f"{path} is damaged: it does not say the shape of {name}")
    if record.plane and (len(shape) != 2 or shape[1] % record.plane):
        raise DataError(f"{path} is damaged: {name} of shape {list(shape)} has no plane {record.plane} high")
    return record, at
