"""A report in colors, for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunus.report.data import Report
from prunus.report.replaced import REPLACED_HEAD, replaced_cells, replaced_line
from prunus.report.rows import layer_rows
from prunus.report.text import (
    LAYER_HEAD,
    TOTALS_HEAD,
    asked,
    checked_lines,
    counts_line,
    form_line,
    layer_cells,
    remarks,
    totals,
    versions_line,
)
from prunus.structure.table import by_operator

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_report"]

_NOTE = LAYER_HEAD.index("note")
_NOTE_WIDTH = 24  # characters; longer notes are folded
_DISPENSABLE = tuple(LAYER_HEAD.index(name) for name in ("kind", "parameters", "weight before"))


def print_report(report: Report, console: Console | None = None, *, layers: bool = True) -> None:
    """Print a report with rich: what `str(report)` says, in colors and fitted to the width of the terminal.

    Args:
        report: of a result.
        console: where to print; by default the standard output.
        layers: with the table of layers, which is long for a deep network.
    """
    from rich.console import Console

    console = console or Console()
    console.print(asked(report), style="bold", markup=False)
    console.print(_totals(report))
    console.print(form_line(report), markup=False, highlight=False)
    passed = report.verification is not None and report.verification["passed"]
    style = "green" if passed else "yellow"
    for line in checked_lines(report):
        console.print(line, style=style, markup=False, highlight=False)
    for line in (*remarks(report), *(line for line in by_operator(report.unknown_operators) if line)):
        console.print(line, style="yellow", markup=False, highlight=False)
    if layers and report.layers:
        console.print(_layers(report, console.width))
    if report.layers or not report.replaced:
        console.print(counts_line(report), markup=False, highlight=False)
    if report.replaced:
        if layers:
            console.print(_replaced(report))
        console.print(replaced_line(report.replaced), markup=False, highlight=False)
    console.print(versions_line(report), style="dim", markup=False, highlight=False)


def _totals(report: Report) -> Table:
    table = _table()
    for name in TOTALS_HEAD:
        style = "bold cyan" if name == "kept" else None
        table.add_column(name, justify="right" if name else "left", style=style)
    for cells in totals(report):
        table.add_row(*cells)
    return table


def _layers(report: Report, width: int) -> Table:
    """The table of layers; where the terminal is narrow, columns go that say least."""
    from rich.text import Text

    rows = layer_rows(report)
    cells = [layer_cells(row) for row in rows]
    columns = list(range(len(LAYER_HEAD)))
    needed = [max(len(LAYER_HEAD[i]), *(len(row[i]) for row in cells), 0) + 3 for i in columns]
    needed[_NOTE] = min(needed[_NOTE], _NOTE_WIDTH) if any(row[_NOTE] for row in cells) else 0
    dropped = [_NOTE] if not needed[_NOTE] else []
    for i in _DISPENSABLE:
        if sum(needed[j] for j in columns if j not in dropped) > width:
            dropped.append(i)
    columns = [i for i in columns if i not in dropped]
    table = _table()
    for i in columns:
        table.add_column(
            LAYER_HEAD[i],
            justify="right" if LAYER_HEAD[i] in ("parameters", "kept") else "left",
            no_wrap=i != _NOTE,
            overflow="fold" if i == _NOTE else "ellipsis",
            min_width=needed[i] - 3 if i else None,  # a path may lose its end, numbers may not
        )
    for row, texts in zip(rows, cells, strict=True):
        style = "red" if row.after == "gone" else "dim" if row.reason else ""
        table.add_row(*(Text(texts[i]) for i in columns), style=style)
    return table


def _replaced(report: Report) -> Table:
    from rich.text import Text

    table = _table()
    for name in REPLACED_HEAD:
        text = name in ("layer", "method", "note")
        table.add_column(name, justify="left" if text else "right", overflow="fold" if text else "ellipsis")
    for layer in report.replaced:
        table.add_row(*map(Text, replaced_cells(layer)), style="dim" if layer.reason else "")
    return table


def _table() -> Table:
    from rich import box
    from rich.table import Table

    return Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
