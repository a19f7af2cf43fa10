"""Figures and one HTML page from a study's folder; reads files, writes files, knows no torch."""

from prunekit.report.findings import Overview, study_overview
from prunekit.report.page import is_suite, overview, write_report, write_suite_page, write_suite_reports

__all__ = [
    "Overview",
    "is_suite",
    "overview",
    "study_overview",
    "write_report",
    "write_suite_page",
    "write_suite_reports",
]
