"""Where the files of a study lie."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from prunekit.digests import SUMS
from prunekit.errors import DataError
from prunekit.files import read_json, refuse_links, remove_leftovers
from prunekit.study.outputs import RESULT, remove
from prunekit.study.spec import Cell, Study

FORMAT = 2
"""The version of the layout; a folder of another version is refused, not guessed at."""

SERIES = "series.json"
"""In the folder of a series: what it is, and the folders of its studies."""

STATE = "state.safetensors"
"""In the folder of a cell that is not finished: the network and the session after its last step."""


@dataclass(frozen=True)
class Layout:
    """Paths inside a study's folder.

    networks/<hash>/seed-<n>/   the trained networks that every method starts from
    cells/<label>-<hash>/seed-<n>/   one recipe and replicate
    study.json, results.csv, layers.csv, SHA256SUMS, units.json, figures/, report.html
    """

    root: Path

    @property
    def study(self) -> Path:
        """The description of the study."""
        return self.root / "study.json"

    @property
    def results(self) -> Path:
        """One row per cell and step."""
        return self.root / "results.csv"

    @property
    def layers(self) -> Path:
        """One row per layer, cell and step."""
        return self.root / "layers.csv"

    @property
    def units(self) -> Path:
        """Gain sweeps and correlations of units, where the study asks for figures of them."""
        return self.root / "units.json"

    def network(self, study: Study, seed: int) -> Path:
        """The trained network of a seed."""
        return self.root / f"networks/{study.network_key}/seed-{seed}"

    def cell(self, cell: Cell, seed: int) -> Path:
        """One recipe for one seed."""
        return self.root / f"cells/{_plain(cell.label)}-{cell.key}/seed-{seed}"

    def check(self) -> None:
        """Refuse a folder that holds something else, results of another version, or links.

        Raises:
            DataError: naming the folder or the file, and what to do.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DataError(f"{self.root} is a file: give a folder for the results")
        refuse_links(self.root)
        if self.study.exists():
            self._check_format()
        elif self.root.is_dir() and not self._holds_results() and any(_visible(self.root)):
            raise DataError(f"{self.root} is not empty and holds no study: choose another folder with --out")

    def _check_format(self) -> None:
        try:
            saved = read_json(self.study)
        except DataError as error:
            raise DataError(
                f"{error}; remove this file and run the study again, which writes it anew"
            ) from None
        found = saved.get("format") if isinstance(saved, dict) else None
        if found != FORMAT:
            raise DataError(
                f"{self.study} says format {str(found)[:40]}, this prunekit reads and writes format "
                f"{FORMAT}: choose another folder with --out"
            )

    def _holds_results(self) -> bool:
        """Whether it is a study's folder that has lost its study.json."""
        return (self.root / "networks").is_dir() or (self.root / "cells").is_dir()

    def tidy(self) -> None:
        """Remove what killed runs have left behind; for the holder of the folder's lock."""
        for name in (
            self.study.name,
            self.results.name,
            self.layers.name,
            SUMS,
            self.units.name,
            "report.html",
        ):
            for path in self.root.glob(f".{name}.*"):
                path.unlink(missing_ok=True)
        # names as text, not as paths: there may be thousands
        tops = [os.path.join(self.root, name) for name in ("networks", "cells")]
        groups = [group for top in tops for group in _folders(top)]
        stages = [stage for group in groups for stage in _folders(group, "seed-")]
        for folder in [*stages, os.path.join(self.root, "figures")]:
            names = os.listdir(folder) if os.path.isdir(folder) and not os.path.islink(folder) else []
            if any(name.startswith(".") for name in names):
                remove_leftovers(Path(folder))
            if RESULT in names and STATE in names:
                remove(Path(folder) / STATE)


@lru_cache(maxsize=1024)
def _plain(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")[:40] or "method"


def _folders(top: str, prefix: str = "") -> list[str]:
    """The folders in a folder whose names begin so; links and a link's content are not looked at."""
    if os.path.islink(top) or not os.path.isdir(top):
        return []
    with os.scandir(top) as entries:
        return [
            entry.path
            for entry in entries
            if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False)
        ]


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))
