"""Links in the folder of a run, which would lead what is written and removed there to other places."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from prunekit.errors import DataError

FILES = (
    *("study.json", "series.json", "results.csv", "layers.csv", "SHA256SUMS", "report.html", ".lock"),
    *("networks", "cells", "figures"),
)
"""What prunekit reads, writes and removes at the top of the folder of a study or a series."""


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
    tops = [*(root / name for name in FILES)]
    for label in labels:
        tops += [root / label, *(root / label / name for name in FILES)]
    for path in tops:
        if path.is_symlink():
            raise _refusal(path, root)
        if path.name in ("networks", "cells", "figures"):
            for link in _links(path):
                raise _refusal(link, root)


def _refusal(link: Path, root: Path) -> DataError:
    return DataError(
        f"{link} is a symbolic link: prunekit reads and writes only what lies in {root} itself; remove the "
        "link, or put there what it leads to"
    )


def _links(top: Path) -> Iterator[Path]:
    """Every link below a folder, which is none itself; none if there is no folder."""
    if not top.is_dir():
        return
    left = [str(top)]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if entry.is_symlink():
                    yield Path(entry.path)
                elif entry.is_dir():
                    left.append(entry.path)
