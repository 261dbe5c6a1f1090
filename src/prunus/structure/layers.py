"""What can be pruned as a table: one row per group, with a cell for how many channels stay."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prunus.errors import ConfigError
from prunus.files import read_text, shown, write_file
from prunus.structure.groups import Group

if TYPE_CHECKING:
    from prunus.structure.structure import Structure

COLUMNS = ("name", "channels", "kept", "group")
_SHOWN = 10  # problems in one message
_MOST_BYTES = 2**26


@dataclass
class LayerRow:
    """One group of channels.

    Attributes:
        name: the layer that makes the channels, or the node at which several layers are coupled.
        channels: how many there are.
        kept: how many stay; None leaves the group alone.
        group: name of the group in the structure.
    """

    name: str
    channels: int
    kept: int | None
    group: str


class LayerTable:
    """What can be pruned, one row per group, to be edited and handed to `prunus.plan(structure, table=table)`.

    Heads have rows of their own, beside those of the channels of all heads.

    Attributes:
        rows: `LayerRow`s in the order of the graph: name, channels, kept, group. `table["conv1"].kept = 8` edits one, by
            its name or its group's.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        >>> structure = prunus.analyze(net, torch.randn(4, 8))
        >>> table = structure.layers()
        >>> table["0"].kept = 5
        >>> len(prunus.plan(structure, table=table).keep["0"])
        5
    """

    def __init__(self, rows: Sequence[LayerRow]) -> None:
        self.rows = list(rows)

    def __iter__(self) -> Iterator[LayerRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> LayerRow:
        for row in self.rows:
            if name in (row.name, row.group):
                return row
        raise ConfigError(f"no row {name!r}; there are {', '.join(row.name for row in self.rows[:8])}")

    def __str__(self) -> str:
        from prunus.structure.table import aligned  # which is about structures, which have tables

        cells = [(r.name, str(r.channels), "" if r.kept is None else str(r.kept), r.group) for r in self.rows]
        return "\n".join(aligned([COLUMNS, *cells], right=(1, 2)))

    def filled(self, keep: Mapping[str, Sequence[int]]) -> LayerTable:
        """The table with the numbers of a plan, `table.filled(plan.keep)`, to be looked at and edited."""
        return LayerTable(
            [
                LayerRow(r.name, r.channels, len(keep[r.group]) if r.group in keep else r.kept, r.group)
                for r in self
            ]
        )

    def to_json(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as a JSON list of objects; also written to `path` if given.

        Raises:
            ConfigError: it cannot be written there.
        """
        return _written(json.dumps([asdict(row) for row in self.rows], indent=1), path)

    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str:
        """The rows as CSV with a head, an empty cell where nothing is said; also written to `path` if given.

        Raises:
            ConfigError: it cannot be written there.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow((row.name, row.channels, "" if row.kept is None else row.kept, row.group))
        return _written(text.getvalue(), path)

    @staticmethod
    def from_csv(path: str | os.PathLike[str]) -> LayerTable:
        """Read a table that `to_csv` wrote, edited since. Columns may be in any order; further ones are ignored.

        Raises:
            ConfigError: no such file, missing columns, or cells that are no whole numbers; names the rows.
        """
        try:
            reader = csv.DictReader(io.StringIO(read_text(Path(path), ConfigError, "table", _MOST_BYTES)))
            lines, head = list(reader), reader.fieldnames or ()
        except csv.Error as error:
            raise ConfigError(f"the table {shown(path)} cannot be read: {error}") from error
        missing = [name for name in COLUMNS if name not in head]
        if missing:
            raise ConfigError(
                f"{path} is no table of layers: it has no column {', '.join(missing)}; expected {','.join(COLUMNS)}"
            )
        problems: list[str] = []
        rows = [_row(number, cells, problems) for number, cells in enumerate(lines, 2)]
        if problems:
            raise ConfigError(f"{path}: " + "; ".join(problems[:_SHOWN]))
        return LayerTable(rows)

    def counts(self, structure: Structure) -> dict[str, int]:
        """Group name -> channels that stay, of the rows that say so.

        Raises:
            ConfigError: rows that do not fit the structure; all problems at once, each with its row's name.
        """
        free = {g.name: g for g in structure.groups if g.held is None}
        found: dict[str, int] = {}
        problems = []
        for row in self.rows:
            group = free.get(row.group)
            if group is None:
                problems.append(f"row {row.name!r}: this model has no group {row.group!r} that can be pruned")
            elif row.channels != group.size:
                problems.append(f"row {row.name!r}: it has {group.size} channels, not {row.channels}")
            elif row.group in found:
                problems.append(f"row {row.name!r}: group {row.group!r} has two rows")
            elif row.kept is None:
                continue
            elif type(row.kept) is not int or not 1 <= row.kept <= group.size:
                problems.append(f"row {row.name!r}: kept={row.kept!r}; say a whole number, 1 to {group.size}")
            else:
                found[row.group] = row.kept
        if problems:
            raise ConfigError("the table does not fit: " + "; ".join(problems[:_SHOWN]))
        if not found:
            raise ConfigError(
                "the table says nothing: fill in `kept`, how many channels stay, of at least one row"
            )
        return found


def layer_table(groups: Sequence[Group]) -> LayerTable:
    """One row per group that can be pruned; heads and the like, which contain the channels of others, by their own names."""
    free = [g for g in groups if g.held is None]
    names = [g.producers[0] if len(g.producers) == 1 and not g.outer else g.name for g in free]
    unique = [name if names.count(name) == 1 else g.name for name, g in zip(names, free, strict=True)]
    return LayerTable([LayerRow(n, g.size, None, g.name) for n, g in zip(unique, free, strict=True)])


def _row(number: int, cells: dict[str, str | None], problems: list[str]) -> LayerRow:
    name = cells["name"] or ""

    def whole(column: str) -> int | None:
        text = (cells[column] or "").strip()
        if not text:
            return None
        try:
            return int(text)
        except ValueError:
            problems.append(f"line {number} ({name}): {column} is {text!r}, not a whole number")
            return None

    channels, kept = whole("channels"), whole("kept")
    if channels is None and not (cells["channels"] or "").strip():
        problems.append(f"line {number} ({name}): channels is empty")
    return LayerRow(name, channels or 0, kept, cells["group"] or "")


def _written(text: str, path: str | os.PathLike[str] | None) -> str:
    if path is not None:
        write_file(Path(path), text, ConfigError, "table")
    return text
