"""The findings of a study in a few words, for a terminal or a program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.report.points import points_of
from prunekit.report.studyfile import read_study
from prunekit.report.summary import findings
from prunekit.report.table import check_tables, read_results
from prunekit.report.words import primary_of


@dataclass(frozen=True)
class Overview:
    """A study's title, and its findings and cautions as plain sentences."""

    title: str
    findings: tuple[str, ...]
    cautions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"title": self.title, "findings": list(self.findings), "cautions": list(self.cautions)}


def study_overview(folder: Path) -> Overview:
    """What the report of a study's folder finds.

    Raises:
        DataError: as `write_report`.
    """
    study = read_study(folder / "study.json")
    check_tables(folder)
    points = points_of(read_results(folder / "results.csv"))
    found = findings(study, points, primary_of(study.primary))
    return Overview(
        study.title,
        tuple(finding.text for finding in found if finding.kind == "result"),
        tuple(finding.text for finding in found if finding.kind == "caution"),
    )
