"""Report: what was done to a network, and what it gained."""

from prunus.report.build import build_report, versions
from prunus.report.data import GroupReport, LayerReport, Report, Totals
from prunus.report.table import print_report

__all__ = ["GroupReport", "LayerReport", "Report", "Totals", "build_report", "print_report", "versions"]
