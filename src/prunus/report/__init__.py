"""Report: what was done to a network, and what it gained."""

from prunus.report.build import build_report, versions
from prunus.report.data import GroupReport, LayerReport, Report, Totals
from prunus.report.recovered import errors_by_group
from prunus.report.table import print_report

__all__ = [
    "GroupReport",
    "LayerReport",
    "Report",
    "Totals",
    "build_report",
    "errors_by_group",
    "print_report",
    "versions",
]
