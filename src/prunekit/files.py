"""Files that are whole or absent, written under a temporary name, then renamed; and names for them."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from prunekit.errors import DataError, InputError, shown

MAX_BYTES = 64 << 20
"""The largest JSON file that is read."""

MAX_DEPTH = 64
"""How deep lists and mappings of a JSON file may be nested."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and is removed if not.

    Raises:
        OSError: naming `path`, if it cannot be written, also where safetensors reports that in its own way;
            if it is a device or a pipe, which stays what it is.
    """
    with _errors_of(path):
        if _is_special(path):
            raise OSError(errno.EINVAL, "It is a device or a pipe, no file", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)  # mkstemp gives 0600, and results are meant to be read
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: what `path` holds is all old or all new; if the new fails, the old is back.

    Raises:
        OSError: as `replacing`.
    """
    with _errors_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                _swap(temporary, path)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _swap(new: Path, path: Path) -> None:
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
    try:
        os.replace(path, aside / "old")
        try:
            os.replace(new, path)
        except BaseException:
            os.replace(aside / "old", path)
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Name the file that the person knows, not the temporary one, in what the disk refuses."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder; nothing, if nothing is there.

    Raises:
        OSError: if it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder that nobody else writes to."""
    if folder.is_symlink():
        return  # what lies there belongs to somebody else
    for path in folder.glob(".*"):
        remove(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file as a whole.

    Raises:
        OSError: if it cannot be written; what was there before is left then.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def to_csv(columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as CSV with a heading; what else than these columns a row has is left out."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_json(values: Any) -> str:
    """Plain values as JSON that any program can read.

    JSON knows no NaN and no infinity, but a network that diverged has such a loss: they become the texts
    "nan", "inf" and "-inf", which `float()` reads.
    """
    return json.dumps(finite(values), indent=1, allow_nan=False)


def finite(values: Any) -> Any:
    """Plain values in which "nan", "inf" and "-inf" stand for the numbers that JSON does not have."""
    if isinstance(values, float):
        return values if math.isfinite(values) else str(values)
    if isinstance(values, Mapping):
        return {key: finite(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [finite(value) for value in values]
    return values


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading: no pipe, which may hang, and no device, which may be endless.

    Raises:
        DataError: naming it, if it is anything else.
        OSError: if it cannot be opened, or is a folder.
    """
    # Without O_NONBLOCK the opening itself waits for the other end of a pipe. The flag is not everywhere.
    waiting = getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | waiting))  # noqa: SIM115  the caller closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise DataError(f"{path} is no regular file")
    return file


def read_bounded(path: Path, limit: int, kind: str) -> bytes:
    """The bytes of a regular file of at most `limit` bytes, which is a multiple of 1 MiB.

    Args:
        path: of the file.
        limit: how many bytes it may have.
        kind: what it is called in the message: "a JSON file".

    Raises:
        DataError: naming the file, if it is larger or is no regular file.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size  # not true of files that the system makes up
        content = b"" if size > limit else file.read(size + 1)
        if len(content) > size:
            content += file.read(limit + 1 - len(content))
    if max(size, len(content)) > limit:
        raise DataError(f"{path} is larger than the {limit >> 20} MiB that are read of {kind}")
    return content


def read_json(path: Path) -> Any:
    """Plain values from a JSON file of at most `MAX_BYTES`, nested at most `MAX_DEPTH` deep.

    Raises:
        DataError: naming the file, if it is missing, is damaged, or is past a limit.
    """
    try:
        text = read_bounded(path, MAX_BYTES, "a JSON file").decode("utf-8")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{path} is damaged: not valid JSON ({error})") from None
    return parse_json(text, path)


def parse_json(text: str, source: Path) -> Any:
    """Plain values from JSON that was found in a file, nested at most `MAX_DEPTH` deep.

    Raises:
        DataError: naming the file, if the text is no JSON or is past the limit.
    """
    try:
        values = json.loads(text)
    except RecursionError:
        raise DataError(f"{source} is nested more than {MAX_DEPTH} deep") from None
    except ValueError as error:
        raise DataError(f"{source} is damaged: not valid JSON ({error})") from None
    could_be_deep = text.count("[") + text.count("{") > MAX_DEPTH  # a count is faster than a walk
    if could_be_deep and deeper_than(values, MAX_DEPTH):
        raise DataError(f"{source} is nested more than {MAX_DEPTH} deep")
    return values


def deeper_than(values: Any, limit: int) -> bool:
    """Whether lists and mappings are nested deeper than a limit; without recursion."""
    level = [values]
    for _ in range(limit + 1):
        inside: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inside += [each for each in value.values() if isinstance(each, dict | list)]
            elif isinstance(value, list):
                inside += [each for each in value if isinstance(each, dict | list)]
        if not inside:
            return False
        level = inside
    return True


# ---- paths that are given ----------------------------------------------------------------------------------


def path_of(what: str, value: Any) -> Path:
    """A path from a text or a `Path`; `what` names it in the error.

    Raises:
        InputError: if it is something else, or holds a zero character, which no system takes.
    """
    if not isinstance(value, str | Path) or "\0" in str(value):
        raise InputError(f"{what} = {shown(value)}: a path is needed, a text or a pathlib.Path")
    return Path(value)


def _is_special(path: Path) -> bool:
    """Whether it is there, and is neither a file nor a folder."""
    return path.exists() and not path.is_file() and not path.is_dir()


def file_to_write(value: Any) -> Path:
    """The path of a file that is to be written.

    Raises:
        InputError: if it is no path, or that of a folder, a device or a pipe.
    """
    path = path_of("path", value)
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a file")
    if _is_special(path):
        raise InputError(f"{path} is a device or a pipe: name a file")
    return path


# ---- names that every system takes -------------------------------------------------------------------------

LONGEST = 100
"""Characters of a name; what a file system takes is little more."""

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_folder_name(name: str) -> str:
    """A name that every system takes for the name of one folder, as it is.

    Raises:
        InputError: in one line, for any other.
    """
    fault = None if _PLAIN.fullmatch(name) else "write letters, digits, '.', '_' and '-' only"
    fault = _fault_of_any(name) or fault
    if fault is not None:
        raise InputError(f"{shown(name)} cannot name a folder: {fault}")
    return name


def check_label(label: str) -> str:
    """A label in words, of which the name of a folder is made, as it is.

    Raises:
        InputError: in one line, if it is empty, too long, or holds line ends or other control characters.
    """
    if not label.strip():
        raise InputError(f"a label is empty: {shown(label)}")
    if _CONTROL.search(label):
        raise InputError(f"{shown(label)} cannot be a label: it holds a line end or a control character")
    if len(label) > LONGEST:
        raise InputError(f"{shown(label)} cannot be a label: it has more than {LONGEST} characters")
    return label


def check_out(path: Path) -> Path:
    """A path at which results can be written, as it is; folders that exist may have any name.

    Raises:
        InputError: in one line, if a folder that would be made has a name that some system does not take.
    """
    for folder in (path, *path.parents):
        if folder.name in ("", "..") or _exists(folder):
            continue
        fault = _fault_of_any(folder.name)
        if fault is not None:
            raise InputError(f"{shown(str(path))}: {shown(folder.name)} cannot name a folder: {fault}")
    return path


def _fault_of_any(name: str) -> str | None:
    if not name:
        return "it is empty"
    if len(name) > LONGEST:
        return f"it has more than {LONGEST} characters"
    if _CONTROL.search(name):
        return "it holds a line end or a control character"
    if name.endswith((".", " ")) or name.startswith(" "):
        return "it begins with a space or ends with a space or a dot"
    if _DEVICE.fullmatch(name.partition(".")[0].rstrip(" ")):
        return "Windows takes it for a device"
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or with a zero byte
        return False
