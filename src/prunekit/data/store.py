"""The files of a dataset, in the user's folder, the cache or at their source, and their content."""

from __future__ import annotations

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from prunekit.errors import DataError
from prunekit.extras import check_installed, imported
from prunekit.plain_yaml import load_yaml


@dataclass(frozen=True)
class Download:
    """One file at a source.

    Attributes:
        name: what the file is called on disk; a name that ends in .tar.gz or .tgz is unpacked.
        checksum: "md5:" or "sha256:" and the digits.
        path: where it lies below a mirror, if not under its name.
    """

    name: str
    checksum: str
    path: str = ""

    @property
    def is_archive(self) -> bool:
        """Whether what is wanted lies inside of this file."""
        return self.name.endswith((".tar.gz", ".tgz"))


@dataclass(frozen=True)
class Source:
    """Where one dataset comes from and how its files are called.

    Attributes:
        dataset: its name, for messages.
        files: what the loader reads; for each file the names that it may have, in order of preference.
        folders: where in a data folder the files may lie, all of them in one of these.
        mirrors: URLs below which the downloads lie, tried in this order; replace them to use one's own.
        downloads: what to download; empty for a dataset that is only read from a folder.
        into: the folder of the cache that receives the downloads.
    """

    dataset: str
    files: tuple[tuple[str, ...], ...]
    folders: tuple[str, ...]
    mirrors: tuple[str, ...] = ()
    downloads: tuple[Download, ...] = ()
    into: str = ""

    def find(self, root: Path) -> list[Path] | None:
        """The path of each of `files` below a data folder, or None unless all are there."""
        for folder in self.folders:
            found = [_first_file(root / folder, names) for names in self.files]
            paths = [path for path in found if path is not None]
            if len(paths) == len(self.files):
                return paths
        return None

    def missing(self, root: Path) -> list[str]:
        """The files that are not there, in the folder that has the most of them."""
        lacking = (
            [" or ".join(names) for names in self.files if _first_file(root / folder, names) is None]
            for folder in self.folders
        )
        return min(lacking, key=len)


def _sources() -> dict[str, Source]:
    text = files("prunekit.data").joinpath("sources.yaml").read_text(encoding="utf-8")
    values = {name: {"dataset": name, **source} for name, source in load_yaml(text).items()}
    return TypeAdapter(dict[str, Source]).validate_python(values)


SOURCES = MappingProxyType(_sources())
"""Those of all datasets that are read from files, by name, as `sources.yaml` says."""


def cache_folder() -> Path:
    """Where downloads and copies are kept: PRUNEKIT_CACHE, or else the user's cache."""
    return Path(os.environ.get("PRUNEKIT_CACHE") or _pooch().os_cache("prunekit")).expanduser()


@dataclass(frozen=True)
class Store:
    """The places where data is looked for.

    Attributes:
        cache: what was downloaded; holds only files whose checksum was right.
        folder: the user's data folder, looked at first.
        download: whether what is in neither may be downloaded.
    """

    cache: Path
    folder: Path | None = None
    download: bool = True

    @classmethod
    def open(cls, data_dir: Path | str | None = None, *, download: bool = True) -> Store:
        """The store at `data_dir` or else PRUNEKIT_DATA, with PRUNEKIT_CACHE or else the user's cache."""
        folder = data_dir or os.environ.get("PRUNEKIT_DATA") or None
        return cls(cache_folder(), Path(folder).expanduser() if folder else None, download)

    def find(self, source: Source) -> list[Path] | None:
        """The path of each of the source's files, from the first place that has all of them; or None."""
        return next(filter(None, (source.find(root) for root in self._roots())), None)

    def fetch(self, source: Source) -> list[Path]:
        """The path of each of the source's files, downloaded if they are nowhere here.

        Raises:
            DataError: if the files cannot be had; it names every place that was looked at.
        """
        found = self.find(source)
        if found is not None:
            return found
        if not self.download:
            raise self._not_found(source, "downloading was not allowed")
        try:
            for item in source.downloads:
                self._download(item, source)
        except _DownloadError as error:
            raise self._not_found(source, f"the download failed: {error}") from error
        found = source.find(self.cache)
        if found is None:
            raise self._not_found(source, "the download does not hold them")
        return found

    def _roots(self) -> Iterator[Path]:
        if self.folder is not None:
            yield self.folder
        yield self.cache

    def _download(self, item: Download, source: Source) -> None:
        failures = []
        for mirror in source.mirrors:
            url = mirror.rstrip("/") + "/" + (item.path or item.name)
            try:
                _retrieve(url, item, self.cache / source.into)
            except (OSError, ValueError, tarfile.TarError) as error:
                unreachable = "Max retries exceeded" in str(error)  # so say ten lines of the network library
                failures.append(f"{url}: {'no connection' if unreachable else error}")
            else:
                return
        raise _DownloadError("; ".join(failures) or "there is no mirror")

    def _not_found(self, source: Source, why: str) -> DataError:
        files = ", ".join(" or ".join(names) for names in source.files)
        places = "; ".join(self._describe(root, source) for root in self._roots())
        return DataError(
            f"{source.dataset}: its files were not found. To fix this, put {files} into the folder "
            f"{source.folders[0]} of a data folder, and name that data folder as data_dir (--data-dir) or in "
            "the environment variable PRUNEKIT_DATA, or load it once with download=True and a connection. "
            f"Looked in {places}; {why}"
        )

    def _describe(self, root: Path, source: Source) -> str:
        if not root.is_dir():
            return f"{root} (no such folder)"
        missing = source.missing(root)
        partly = f"; missing there: {', '.join(missing)}" if len(missing) < len(source.files) else ""
        return f"{root} (in {', '.join(source.folders)}{partly})"


def table_inside_sklearn(name: str, purpose: str, header: int = 0) -> NDArray[np.float64]:
    """The numbers of a table that scikit-learn brings along, (rows, columns).

    It is read without importing scikit-learn, which takes a second in every worker of a study.

    Args:
        name: of the file among its data sets.
        purpose: what needs it, for the error where scikit-learn is missing.
        header: lines before the first row.
    """
    check_installed(purpose, "sklearn")
    (root,) = find_spec("sklearn").submodule_search_locations  # type: ignore[union-attr, misc]
    return np.loadtxt(Path(root, "datasets", "data", name), delimiter=",", skiprows=header)


class _DownloadError(Exception):
    """No mirror gave what was asked for; says why for each."""


def _pooch() -> Any:
    return imported("pooch", "A download")


def _retrieve(url: str, item: Download, target: Path) -> None:
    """Put one download, unpacked if it is an archive, into a folder; nothing half-written is left there."""
    if not item.is_archive:
        # pooch writes to a temporary name and renames it once the checksum is right.
        _pooch().retrieve(url, known_hash=item.checksum, fname=item.name, path=target)
        return
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target, prefix="unpacking-") as temporary:
        archive = _pooch().retrieve(url, known_hash=item.checksum, fname=item.name, path=temporary)
        unpacked = Path(temporary, "unpacked")
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        # File by file, since renaming a file is atomic and harmless where another process was faster.
        for file in sorted(path for path in unpacked.rglob("*") if path.is_file()):
            destination = target / file.relative_to(unpacked)
            destination.parent.mkdir(parents=True, exist_ok=True)
            file.replace(destination)


def _first_file(folder: Path, names: tuple[str, ...]) -> Path | None:
    # os.path.isfile, since Path.is_file raises where a folder may not be entered.
    return next((folder / name for name in names if os.path.isfile(folder / name)), None)


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
