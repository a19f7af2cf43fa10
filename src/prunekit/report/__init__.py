"""Figures and one HTML page from a study's folder; reads files, writes files, knows no torch."""

from prunekit.report.overview import Overview, study_overview
from prunekit.report.page import write_report
from prunekit.report.points import Curve, Point, Spread, curves_of, points_of, spread_of
from prunekit.report.series import is_series, overview, write_series_page, write_series_reports
from prunekit.report.studyfile import StudyFile, read_study
from prunekit.report.summary import Best, best_at, findings, reach_of
from prunekit.report.table import LayerRow, Row, read_layers, read_results

__all__ = [
    "Best",
    "Curve",
    "LayerRow",
    "Overview",
    "Point",
    "Row",
    "Spread",
    "StudyFile",
    "best_at",
    "curves_of",
    "findings",
    "is_series",
    "overview",
    "points_of",
    "reach_of",
    "read_layers",
    "read_results",
    "read_study",
    "spread_of",
    "study_overview",
    "write_report",
    "write_series_page",
    "write_series_reports",
]
