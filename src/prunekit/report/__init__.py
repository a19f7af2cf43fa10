"""Figures and one HTML page from a study's folder; reads files, writes files, knows no torch."""

from prunekit.extras import check_installed

check_installed("A report", "matplotlib", "jinja2")  # before they are imported, so that the extra is named

from prunekit.report.findings import Overview, study_overview  # noqa: E402
from prunekit.report.page import (  # noqa: E402
    is_suite,
    overview,
    write_report,
    write_suite_page,
    write_suite_reports,
)

__all__ = [
    "Overview",
    "is_suite",
    "overview",
    "study_overview",
    "write_report",
    "write_suite_page",
    "write_suite_reports",
]
