"""Figures and one HTML page from a study's folder; reads files, writes files, knows no torch."""

from prunekit.report.findings import (
    Best,
    Overview,
    best_at,
    findings,
    max_compression_within_tolerance,
    study_overview,
)
from prunekit.report.page import is_suite, overview, write_report, write_suite_page, write_suite_reports
from prunekit.report.points import Curve, Point, Spread, curves_of, points_of, spread_of
from prunekit.report.read_tables import LayerRow, Row, read_layers, read_results

__all__ = [
    "Best",
    "Curve",
    "LayerRow",
    "Overview",
    "Point",
    "Row",
    "Spread",
    "best_at",
    "curves_of",
    "findings",
    "is_suite",
    "max_compression_within_tolerance",
    "overview",
    "points_of",
    "read_layers",
    "read_results",
    "spread_of",
    "study_overview",
    "write_report",
    "write_suite_page",
    "write_suite_reports",
]
