"""Where the files of a study lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import DataError
from prunekit.files import read_json
from prunekit.study.spec import Cell, Study

FORMAT = 1
"""The version of the layout; a folder of another version is refused, not guessed at."""


@dataclass(frozen=True)
class Layout:
    """Paths inside a study's folder.

    networks/<hash>/seed-<n>/   the trained networks that every method starts from
    cells/<label>-<hash>/seed-<n>/   one recipe and replicate
    study.json, results.csv, layers.csv, figures/, report.html
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

    def network(self, study: Study, seed: int) -> Path:
        """The trained network of a seed."""
        return self.root / "networks" / study.network_key / f"seed-{seed}"

    def cell(self, cell: Cell, seed: int) -> Path:
        """One recipe for one seed."""
        label = re.sub(r"[^a-z0-9]+", "-", cell.label.lower()).strip("-")[:40] or "method"
        return self.root / "cells" / f"{label}-{cell.key}" / f"seed-{seed}"

    def check(self) -> None:
        """Refuse a folder that holds something else or results of another version.

        Raises:
            DataError: naming the folder.
        """
        if self.root.exists() and not self.root.is_dir():
            raise DataError(f"{self.root} is a file: give a folder for the results")
        if self.study.exists():
            saved = read_json(self.study)
            found = saved.get("format") if isinstance(saved, dict) else None
            if found != FORMAT:
                raise DataError(
                    f"{self.root} holds results of format {found}, this prunekit writes format {FORMAT}: "
                    "choose another folder with --out"
                )
        elif self.root.is_dir() and any(not path.name.startswith(".") for path in self.root.iterdir()):
            raise DataError(f"{self.root} is not empty and holds no study: choose another folder with --out")
