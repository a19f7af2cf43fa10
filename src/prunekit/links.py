"""Links in the folder of a run, which would lead what is written and removed there to other places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prunekit.errors import DataError

FILES = (
    "study.json",
    "series.json",
    "results.csv",
    "layers.csv",
    "SHA256SUMS",
    "units.json",
    "report.html",
    ".lock",
)
"""What prunekit reads, writes and removes at the top of the folder of a study or a series."""

FOLDERS = {"networks": 3, "cells": 3, "figures": 1}
"""The folders there, and how many levels of them prunekit goes through by itself.

What lies deeper, the files of a saved network, is written and removed with its folder as a whole.
"""


def refuse_links(root: Path, labels: Iterable[str] = ()) -> None:
    """Refuse the folder of a study or a series in which something that is used is a symbolic link.

    The folder itself may be one: that is the user's choice. A folder that came from elsewhere may hold links
    that the user knows nothing of.

    Args:
        root: the folder.
        labels: the folders of the studies, for a series.

    Raises:
        DataError: naming the first link.
        OSError: if a folder cannot be read.
    """
    names = (*FILES, *FOLDERS)
    tops = [*(root / name for name in names)]
    for label in labels:
        tops += [root / label, *(root / label / name for name in names)]
    for path in tops:
        if path.is_symlink():
            raise _refusal(path, root)
        if path.name in FOLDERS:
            for link in _links(path, FOLDERS[path.name]):
                raise _refusal(link, root)


def _refusal(link: Path, root: Path) -> DataError:
    return DataError(
        f"{link} is a symbolic link: prunekit reads and writes only what lies in {root} itself; remove the "
        "link, or put there what it leads to"
    )


def _links(top: Path, levels: int) -> Iterator[Path]:
    """The links in the first levels below a folder, which is none itself; none if there is no folder."""
    folders = [str(top)] if top.is_dir() else []
    for _ in range(levels):
        inside: list[str] = []
        for folder in folders:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        yield Path(entry.path)
                    elif entry.is_dir():
                        inside.append(entry.path)
        folders = inside
