"""Files that carry the SHA-256 of their own content, so that damage is noticed when they are read back.

A digest tells damage, not forgery: whoever writes a file can write a digest that fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError, safe_open

from prunekit.errors import DataError, escaped
from prunekit.files import (
    MAX_BYTES,
    finite,
    open_regular,
    read_bounded,
    read_json,
    replacing,
    write_text,
)

if TYPE_CHECKING:  # torch takes long to import, and reports need none
    from torch import Tensor

Model = TypeVar("Model", bound=BaseModel)

KEY = "sha256"
"""Under this key a JSON file, or the metadata of a safetensors file, holds its digest."""


def write_json_with_digest(path: Path, values: Mapping[str, Any]) -> str:
    """Write a mapping of plain values as JSON, with its digest under `sha256`; the digest.

    Raises:
        OSError: if it cannot be written; what was there before is left then.
    """
    plain = finite(values)
    digest = digest_of_json(plain)
    write_text(path, json.dumps({**plain, KEY: digest}, indent=1, allow_nan=False) + "\n")
    return digest


def write_json_unless_same(path: Path, values: Mapping[str, Any]) -> None:
    """Write as `write_json_with_digest` does, but leave a file alone that holds these values already.

    Reading and hashing a large file takes a fraction of the time that indented JSON takes to be made.

    Raises:
        OSError: as `write_json_with_digest`.
    """
    try:
        read_json_with_digest(path, digest_of_json(finite(values)))
    except DataError:
        write_json_with_digest(path, values)


def read_json_with_digest(path: Path, digest: str | None = None) -> dict[str, Any]:
    """The mapping that `write_json_with_digest` wrote, without its digest.

    Args:
        path: of the file.
        digest: what its digest must be, where something else says so.

    Raises:
        DataError: naming the file, if it is missing, is damaged, or holds other values than were written.
    """
    return checked_json(path, read_json(path), digest)


def checked_json(path: Path, values: Any, digest: str | None = None) -> dict[str, Any]:
    """The values of a file that was read, without their digest, which must be theirs.

    Raises:
        DataError: as `read_json_with_digest`.
    """
    if not isinstance(values, dict) or KEY not in values:
        raise DataError(f"{path} is damaged or was not written by prunekit: it has no {KEY!r}")
    rest = {key: value for key, value in values.items() if key != KEY}
    _check_digests(path, values[KEY], digest_of_json(rest), digest)
    return rest


def validated(kind: type[Model], values: Any, place: str) -> Model:
    """Values from a file as a model.

    Args:
        kind: the model.
        values: what the file holds.
        place: what the error begins with, such as the path.

    Raises:
        DataError: in one line, with the first value that is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        inside = escaped(".".join(str(step)[:60] for step in first["loc"]))  # empty for the whole
        message = first["msg"].removeprefix("Value error, ")
        raise DataError(f"{place}: {inside + ': ' if inside else ''}{message}") from None


def digest_of_json(values: Any) -> str:
    """SHA-256 of plain JSON values in canonical form, in hexadecimal digits."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> str:
    """Write tensors as safetensors, with the digest of names, dtypes, shapes, values and metadata.

    Returns the digest.

    Raises:
        OSError: if it cannot be written; what was there before is left then.
    """
    from safetensors.torch import save_file

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    digest = digest_of_tensors(whole, metadata)
    with replacing(path) as temporary:
        save_file(whole, temporary, {**metadata, KEY: digest})
    return digest


def read_tensors(
    path: Path, digest: str | None = None, *, mapped: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) that `write_tensors` wrote; the metadata without the digest.

    Args:
        path: of the file.
        digest: what its digest must be, where something else says so.
        mapped: whether the tensors may lie in the file itself, as they do for safetensors: that is faster,
            but what changes the file changes them, so that they must be copied at once.

    Raises:
        DataError: naming the file, if it is missing, is damaged, or holds other values than were written.
    """
    try:
        open_regular(path).close()  # safe_open waits at a pipe for ever
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
        if not mapped:
            tensors = {name: value.clone() for name, value in tensors.items()}
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or truncated ({' '.join(str(error).split())})") from None
    _check_digests(path, metadata.pop(KEY, None), digest_of_tensors(tensors, metadata), digest)
    return tensors, metadata


def _check_digests(path: Path, said: Any, found: str, wanted: str | None) -> None:
    if said != found:
        raise DataError(f"{path} is damaged or was changed: its content is not what {KEY!r} says")
    if wanted is not None and found != wanted:
        raise DataError(f"{path} is another file than the one that belongs here, by its {KEY!r}")


def digest_of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] = {}) -> str:
    """SHA-256 of names, dtypes, shapes and values of tensors on the CPU, and of metadata."""
    found = hashlib.sha256(digest_of_json(dict(metadata)).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().contiguous()
        found.update(f"{name}\0{value.dtype}\0{tuple(value.shape)}\0".encode("utf-8", "surrogatepass"))
        found.update(bytes_of(value))
    return found.hexdigest()


def bytes_of(value: Tensor) -> Any:
    """The memory of a contiguous tensor on the CPU, to be hashed."""
    import torch

    return value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b""


def digest_of_file(path: Path) -> str:
    """SHA-256 of the bytes of a file, in hexadecimal digits.

    Raises:
        DataError: if it is no regular file.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


SUMS = "SHA256SUMS"
"""In a folder of tables: the digests of its files, as `sha256sum -c SHA256SUMS` checks them."""


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of files of a folder into its `SHA256SUMS`.

    Raises:
        OSError: if a file cannot be read or the digests cannot be written.
    """
    lines = [f"{digest_of_file(folder / name)}  {name}\n" for name in names]
    with replacing(folder / SUMS) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8", newline="\n")


def check_sum(path: Path) -> bool:
    """Whether `SHA256SUMS` beside a file says something of it, and what it says is true.

    Raises:
        DataError: naming the file, if its content is not what its digest says, or it is no regular file.
    """
    try:
        text = read_bounded(path.parent / SUMS, MAX_BYTES, "digests").decode("utf-8")
        lines = text.splitlines()
        said = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        if path.name not in said:
            return False
        if digest_of_file(path) == said[path.name]:
            return True
    except FileNotFoundError:
        return False
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path.parent / SUMS}: {error}") from None
    raise DataError(f"{path} is damaged or was changed: its content is not what {SUMS} says")
