"""Reading a file whole, and saying clearly what is wrong with one."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from prunekit.errors import DataError

_GZIP = b"\x1f\x8b"
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml")


def damaged(path: Path, what: str) -> DataError:
    """The error for a file that is there but cannot be used, with the way out."""
    return DataError(f"{path}: {what}; replace this file, or remove it to have it downloaded")


def read_bytes(path: Path) -> bytes:
    """The content of a file, decompressed if it is gzipped (told by its first bytes, not by its name).

    Raises:
        DataError: if the file cannot be read, is a truncated or damaged gzip file, is empty, or is a web page
            (what a login or error page leaves when it is saved under the name of the data).
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    if content.startswith(_GZIP):
        try:
            content = gzip.decompress(content)
        except EOFError as error:
            raise damaged(path, f"the gzip file is truncated after {path.stat().st_size} bytes") from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise damaged(path, f"the gzip file is damaged ({error})") from error
    if not content:
        raise damaged(path, "the file is empty")
    if content[:256].lstrip().lower().startswith(_WEB_PAGE):
        raise damaged(path, "this is a web page, not data")
    return content
