"""Layers that can be decomposed as a table: channels, recommended ranks, and a cell for the ranks that are used."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunus.errors import ConfigError
from prunus.files import read_text, shown, write_file

__all__ = ["RankRow", "RankTable"]

COLUMNS = ("name", "method", "inputs", "outputs", "full", "recommended", "ranks")
_SHOWN = 10
_MOST_BYTES = 2**26


@dataclass
class RankRow:
    """One layer.

    Attributes:
        name: module path.
        method: that takes it.
        inputs, outputs: channels.
        full: ranks at which nothing is lost.
        recommended: ranks by the rule; None where there is no recommendation.
        ranks: those that are used; None leaves the layer alone.
    """

    name: str
    method: str
    inputs: int
    outputs: int
    full: tuple[int, ...]
    recommended: tuple[int, ...] | None = None
    ranks: tuple[int, ...] | int | None = None


class RankTable:
    """Layers that can be decomposed, one row each, to be edited and handed to `prunus.decompose(..., table=table)`.

    Attributes:
        rows: `RankRow`s in the order of the model. `table["conv1"].ranks = (8, 16)` edits one.
    """

    def __init__(self, rows: Sequence[RankRow]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[RankRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> RankRow:
        for row in self.rows:
            if row.name == name:
                return row
        raise ConfigError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows[:8])}")

    def __str__(self) -> str:
        from prunus.structure.table import aligned

        return "\n".join(aligned([COLUMNS, *map(_cells, self.rows)], right=(2, 3, 4, 5, 6)))

    def ranks(self) -> dict[str, Any]:
        """Module path -> ranks, of the rows that say so.

        Raises:
            ConfigError: none does.
        """
        found = {row.name: row.ranks for row in self.rows if row.ranks is not None}
        if not found:
            raise ConfigError("the table chooses no layer: fill in the ranks of at least one row")
        return found

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as CSV with a head; ranks are separated by spaces. Also written to `path` if given.

        Raises:
            ConfigError: it cannot be written there.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([COLUMNS, *map(_cells, self.rows)])
        if path is not None:
            write_file(Path(path), text.getvalue(), ConfigError, "table")
        return text.getvalue()

    @staticmethod
    def from_csv(path: str | os.PathLike[str]) -> RankTable:
        """Read a table that `to_csv` wrote, edited since.

        Raises:
            ConfigError: no such file, missing columns, or cells that are no whole numbers; names the lines.
        """
        try:
            reader = csv.DictReader(io.StringIO(read_text(Path(path), ConfigError, "table", _MOST_BYTES)))
            lines, head = list(reader), reader.fieldnames or ()
        except csv.Error as error:
            raise ConfigError(f"the table {shown(path)} cannot be read: {error}") from error
        missing = [name for name in COLUMNS if name not in head]
        if missing:
            raise ConfigError(f"{path} is no table of ranks: it has no column {', '.join(missing)}")
        rows, problems = [], []
        for number, cells in enumerate(lines, 2):
            try:
                rows.append(_row(cells))
            except ValueError as error:
                problems.append(f"line {number} ({cells['name']}): {error}")
        if problems:
            raise ConfigError(f"{path}: " + "; ".join(problems[:_SHOWN]))
        return RankTable(rows)


def _cells(row: RankRow) -> tuple[str, ...]:
    numbers = (_joined(row.full), _joined(row.recommended), _joined(row.ranks))
    return (row.name, row.method, str(row.inputs), str(row.outputs), *numbers)


def _joined(ranks: tuple[int, ...] | int | None) -> str:
    return "" if ranks is None else " ".join(map(str, ranks if isinstance(ranks, tuple | list) else (ranks,)))


def _row(cells: dict[str, str | None]) -> RankRow:
    def numbers(column: str) -> tuple[int, ...]:
        return tuple(int(part) for part in (cells[column] or "").split())

    (inputs,), (outputs,) = numbers("inputs"), numbers("outputs")
    recommended, ranks = numbers("recommended") or None, numbers("ranks") or None
    return RankRow(cells["name"] or "", cells["method"] or "", inputs, outputs, numbers("full"), recommended, ranks)  # fmt: skip
