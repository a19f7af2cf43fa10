"""The folder of a study on another file system, such as s3://bucket/study: workers need no common disk.

A worker fetches what a job reads into a folder of its own, runs it there, and sends what it writes while it
goes on; the result is sent last, so that a stage is finished on the other side only when it is whole there.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from prunekit.data.store import cache_folder
from prunekit.errors import DataError, InputError
from prunekit.extras import imported
from prunekit.folder_lock import LOCK
from prunekit.study.jobs import Job, Progress, line_of
from prunekit.study.layout import RESULT, Layout, check_below
from prunekit.study_files import FILES

EVERY = 5.0
"""Seconds between two looks at what a job has written."""


def is_remote(out: Path | str) -> bool:
    """Whether the folder of a study is named by a URL."""
    return isinstance(out, str) and "://" in out


@dataclass(frozen=True)
class RemoteFolder:
    """A folder that fsspec reaches.

    Attributes:
        url: such as `s3://bucket/study` or `file:///mnt/share/study`.
    """

    url: str

    def __truediv__(self, name: str) -> RemoteFolder:
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    @property
    def copy(self) -> Path:
        """The folder of this machine with what was measured, for tables and report."""
        key = sha256(self.url.rstrip("/").encode()).hexdigest()[:12]
        return cache_folder() / "studies" / f"{self.url.rstrip('/').split('/')[-1]}-{key}"

    def check(self) -> None:
        """InputError if the file system is not known, cannot be reached, or cannot be written to."""
        try:
            system, root = self._reached()
            system.makedirs(root, exist_ok=True)
            probe = f"{root}/.prunekit-{time.time_ns()}"
            system.pipe_file(probe, b"")
            system.rm_file(probe)
        except Exception as error:  # of as many kinds as there are file systems
            raise InputError(f"{self.url} cannot be written to: {line_of(error)}") from None

    def files(self, names: Iterable[str] = ("",)) -> set[str]:
        """The names of all files, or of those that have one of these names or lie in such a folder."""
        system, root = self._reached()
        system.invalidate_cache()
        prefix, found = root.rstrip("/") + "/", set[str]()
        for name in names:
            with suppress(FileNotFoundError):
                found |= {check_below(path.removeprefix(prefix)) for path in system.find(prefix + name)}
        return found

    def fetch(self, names: Iterable[str], to: Path) -> None:
        """Copy files into a folder of this machine."""
        system, root = self._reached()
        for name in sorted(names):
            path = to / name
            path.parent.mkdir(parents=True, exist_ok=True)
            system.get_file(f"{root}/{name}", str(path))

    def fetch_results(self, to: Path) -> Callable[[Path, Any], None]:
        """Copy what stages have measured, but not their networks.

        Returns:
            The check of a stage's file for `Results`: it must be on the other side.
        """
        there = self.files()
        self.fetch({name for name in there if name.split("/")[-1] == RESULT or name in FILES} - {LOCK}, to)
        return partial(_check_listed, self.url, to, there)

    def send(self, root: Path, names: set[str]) -> None:
        """Copy files of a folder of this machine there, results last."""
        system, there = self._reached()
        for name in sorted(names, key=lambda name: (name.split("/")[-1] == RESULT, name)):
            target = f"{there}/{name}"
            system.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
            system.put_file(str(root / name), target)

    def send_tops(self, root: Path) -> None:
        """Copy tables, figures and report there."""
        figures = {path.relative_to(root).as_posix() for path in (root / "figures").glob("[!.]*")}
        self.send(root, figures | {name for name in FILES if (root / name).is_file()} - {LOCK})

    def remove(self, names: set[str]) -> None:
        """Remove files."""
        system, root = self._reached()
        for name in sorted(names):
            system.rm_file(f"{root}/{name}")

    def job(self, job: Job) -> Job:
        """A job that reads and writes here what it would in the folder of its layout."""
        return replace(job, run=_run_in_copy, arguments=(self, job))

    def _reached(self) -> tuple[Any, str]:
        system, root = imported("fsspec.core", "A folder on another file system").url_to_fs(self.url)
        return system, root


def _check_listed(url: str, root: Path, there: set[str], path: Path, digest: Any) -> None:
    name = path.relative_to(root).as_posix()
    if name not in there:
        raise DataError(f"{url}/{name} is missing")


def _run_in_copy(remote: RemoteFolder, job: Job, progress: Progress) -> None:
    """Run a job in a folder of this machine with what it needs of the remote one."""
    with tempfile.TemporaryDirectory(prefix="prunekit-") as folder:
        root = Path(folder)
        there = remote.files(job.writes)
        remote.fetch(there | remote.files(job.reads), root)
        sent = _Sent(remote, root, job.writes, there)

        def tell(fraction: float) -> None:
            sent.now_and_then()
            progress(fraction)

        moved = (replace(each, root=root) if isinstance(each, Layout) else each for each in job.arguments)
        try:
            job.run(*moved, tell)
        finally:
            sent.send()


class _Sent:
    """What a job has written, as it is on the other side.

    Args:
        remote: the folder there.
        root: the folder here.
        names: the files and folders that the job writes.
        there: those of their files that are there already, as they are here.
    """

    def __init__(self, remote: RemoteFolder, root: Path, names: tuple[str, ...], there: set[str]) -> None:
        self._remote, self._root, self._names = remote, root, names
        self._known = {name: stamp for name, stamp in self._stamps().items() if name in there}
        self._looked = time.monotonic()

    def now_and_then(self) -> None:
        """As `send`, but not at every call."""
        if time.monotonic() - self._looked > EVERY:
            self.send()
            self._looked = time.monotonic()

    def send(self) -> None:
        """Send what has changed, then remove what is not here any more."""
        stamps = self._stamps()
        self._remote.send(self._root, {name for name in stamps if self._known.get(name) != stamps[name]})
        self._remote.remove(self._known.keys() - stamps.keys())
        self._known = stamps

    def _stamps(self) -> dict[str, tuple[int, int]]:
        """The time and size of each file; files that are being written have names with a dot."""
        found = {}
        for name in self._names:
            top = self._root / name
            for path in [top, *top.rglob("*")]:
                if path.is_file() and not path.name.startswith("."):
                    about = path.stat()
                    found[path.relative_to(self._root).as_posix()] = about.st_mtime_ns, about.st_size
        return found
