"""A report as a plain text table."""

from __future__ import annotations

from prunus.report.data import Report


def as_text(report: Report) -> str:
    """The totals, the layers and the verification, for a terminal of any width."""
    lines = [f"{'':12}{'before':>16}{'after':>16}{'kept':>9}"]
    for name in ("params", "macs", "size_bytes", "latency_ms"):
        before, after = getattr(report.before, name), getattr(report.after, name)
        if before is None or after is None:
            continue
        form = ",.2f" if name == "latency_ms" else ",d"
        lines.append(f"{name:12}{before:>16{form}}{after:>16{form}}{after / before if before else 1:>9.1%}")
    return "\n".join(lines)
