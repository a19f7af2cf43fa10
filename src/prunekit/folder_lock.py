"""One run at a time in a folder: a lock that the operating system holds, and lets go with the process."""

from __future__ import annotations

import errno
import logging
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from prunekit.errors import DataError, InputError

log = logging.getLogger(__name__)

LOCK = ".lock"
"""Held by the run that writes to the folder."""


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep every other run out of a folder until the block ends.

    The operating system holds the lock for the open file, so it goes with the process however that ends: a
    lock file that is left behind does not keep anyone out. Where nothing else was written, nothing is left.

    Raises:
        InputError: if another run holds it.
        DataError: if the lock file is a link, or no regular file.
        OSError: if the folder cannot be written to.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with _opened(folder / LOCK) as file:
        try:
            _take(file)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                log.warning("%s cannot be locked (%s): start no second run there", folder, error.strerror)
            else:
                file.seek(0)
                holder = file.read(20).strip() or "unknown"
                raise InputError(
                    f"another run is at work in {folder} (process {holder}): wait until it ends, or stop it, "
                    "or choose another folder with --out"
                ) from None
        else:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
        try:
            yield
        finally:
            _remove_if_alone(folder, made)


def _remove_if_alone(folder: Path, made: bool) -> None:
    with suppress(OSError):  # Windows removes no open file
        if [path.name for path in folder.iterdir()] == [LOCK]:
            (folder / LOCK).unlink()
            if made:
                folder.rmdir()


def _opened(path: Path) -> IO[str]:
    """The lock file, made if it is not there; no other file is opened, for it is written to."""
    optional = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))  # not everywhere
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for flag in optional:
        flags |= flag
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise DataError(f"{path} is a symbolic link: remove it") from None
        raise error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError(f"{path} is no regular file: remove it")
    return os.fdopen(handle, "a+", encoding="utf-8")


if sys.platform == "win32":
    import msvcrt

    def _take(file: IO[str]) -> None:
        # Windows keeps others from reading what is locked: the lock lies far behind the text
        file.seek(1 << 30)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)

else:
    import fcntl

    def _take(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
