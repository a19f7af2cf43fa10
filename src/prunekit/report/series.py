"""The page of a series: what was asked, and what each of its studies found, with the way to its report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from prunekit.links import refuse_links
from prunekit.names import check_folder_name
from prunekit.report.canvas import write_atomically
from prunekit.report.html import render_series
from prunekit.report.overview import Overview, study_overview
from prunekit.report.page import write_report
from prunekit.report.studyfile import read_description

SERIES = "series.json"


class SeriesFile(BaseModel):
    """series.json, checked."""

    model_config = ConfigDict(frozen=True)
    format: int
    name: str
    title: str
    question: str
    expected: str
    problems: tuple[Annotated[str, AfterValidator(check_folder_name)], ...] = Field(min_length=1)
    command: str


def is_series(folder: Path) -> bool:
    """Whether the folder holds the studies of a series, and no study itself."""
    return (folder / SERIES).is_file()


def read_series(folder: Path) -> SeriesFile:
    """What series.json says. Raises DataError, naming the file and the place, if it is damaged, or a link."""
    refuse_links(folder)
    found = read_description(folder / SERIES, SeriesFile)
    refuse_links(folder, found.problems)
    return found


def write_series_reports(folder: Path) -> Path:
    """The reports of all studies of a series anew, and its page. Raises DataError, as `write_report`."""
    for label in read_series(folder).problems:
        write_report(folder / label)
    return write_series_page(folder)


def write_series_page(folder: Path) -> Path:
    """The page that leads to the reports of the studies. Returns its path. Raises DataError."""
    series = read_series(folder)
    found = [(label, study_overview(folder / label)) for label in series.problems]
    target = folder / "report.html"
    write_atomically(target, render_series(series.model_dump(), found).encode())
    return target


def overview(folder: Path) -> Overview:
    """What the report in a folder finds: that of a study, or of all studies of a series, by problem.

    Raises:
        DataError: as `write_report`.
    """
    if not is_series(folder):
        return study_overview(folder)
    series = read_series(folder)
    found = [(label, study_overview(folder / label)) for label in series.problems]
    return Overview(
        series.title,
        tuple(f"{label}: {text}" for label, one in found for text in one.findings),
        tuple(f"{label}: {text}" for label, one in found for text in one.cautions),
    )
