"""Whether what leaves together fits every grid: rows that share channels with other groups in other ways."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from prunus.structure.control import Control
from prunus.structure.hashing import distinct as distinct_of
from prunus.structure.labels import Grid, Labels, Reason

if TYPE_CHECKING:
    from prunus.structure.solve import Units

REASON = "would take different numbers of channels from rows that must keep equally many"


def constrain(labels: Labels, units: Units, grids: list[Grid]) -> bool:
    """Note what the grids say of slabs and of each other; is there anything new?

    A slab that takes whole rows or whole columns of a grid may leave by itself. Slabs that divide every row evenly make rows
    of slabs. Any other would leave a ragged grid, and is held.
    """
    known = {grid.labels.tobytes() for grid in grids}
    label_of = _representatives(units)
    removable = units.removable
    fresh: dict[bytes, Grid] = {}
    bad: set[int] = set()
    for grid in grids:
        for depth in range(1, grid.labels.ndim):
            rows = units.of_label[grid.labels].reshape(int(np.prod(grid.labels.shape[:depth])), -1)
            if (rows == rows[:1]).all():
                continue
            partial = _partial_slabs(rows, units.control, removable)
            for family in _families(units, partial).values():
                found = _blocks(rows, family, grid.separable)
                if found is None:
                    bad.update(family)
                    continue
                # where single labels leave with whole columns only, blocks of them do
                columns = grid.separable or bool(units.locked[rows].any())
                derived = Grid(label_of[found], grid.node, columns)
                fresh.setdefault(derived.labels.tobytes(), derived)
    held = sorted(slab for slab in bad if units.held[slab] < 0)
    if held:
        labels.holds.append((label_of[np.array(held)], Reason(REASON)))
    new = [grid for key, grid in fresh.items() if key not in known]
    grids.extend(new)
    return bool(held or new) or _unite_crossing(labels, units, grids)


def _partial_slabs(rows: np.ndarray, control: Control, removable: np.ndarray) -> dict[int, np.ndarray]:
    """Removable slabs that take neither whole rows nor whole columns, with the positions they take."""
    flat = rows.reshape(-1)
    at, owner = control.owners(flat)
    inside = np.zeros(len(removable), bool)
    inside[flat] = True
    used = removable[owner] & ~inside[owner]
    if not used.any():
        return {}
    keys = distinct_of(owner[used].astype(np.int64) * rows.size + at[used])
    slabs, starts = np.unique(keys // rows.size, return_index=True)
    partial = {}
    for slab, taken in zip(slabs.tolist(), np.split(keys % rows.size, starts[1:]), strict=True):
        line, column = taken // rows.shape[1], taken % rows.shape[1]
        full = np.bincount(line, minlength=len(rows)) == rows.shape[1]
        rest = ~full[line]
        if rest.any() and rest.sum() != (~full).sum() * len(np.unique(column[rest])):
            partial[slab] = taken
    return partial


def _families(units: Units, partial: dict[int, np.ndarray]) -> dict[int, dict[int, np.ndarray]]:
    """By the places that they occupy."""
    families: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for slab, taken in partial.items():
        families[int(units.signature[slab])][slab] = taken
    return families


def _blocks(rows: np.ndarray, family: dict[int, np.ndarray], separable: bool) -> np.ndarray | None:
    """(rows of slabs, slabs per row) where they divide every row evenly; a slab may take as many from several rows.

    Where the columns must stay the same, the slab at every column.
    """
    taken = np.concatenate(list(family.values()))
    if len(taken) != rows.size or len(distinct_of(taken)) != rows.size:
        return None
    owner = np.zeros(rows.size, int)
    for slab, positions in family.items():
        owner[positions] = slab
    lines = np.sort(owner.reshape(rows.shape), 1)
    distinct = np.unique(lines, axis=0)
    counts = [np.unique(line, return_counts=True) for line in distinct]
    if len({times for _, each in counts for times in each.tolist()}) > 1:
        return None  # rows lose different numbers with a slab
    if sum(len(slabs) for slabs, _ in counts) != len(family):
        return None  # rows share some of their slabs only
    if separable and len(distinct) == 1:
        return np.unique(owner.reshape(rows.shape), axis=0)
    lists = [list(dict.fromkeys(line.tolist())) for line in owner.reshape(rows.shape)]
    return np.array(list({tuple(sorted(line)): line for line in lists}.values()))


def _unite_crossing(labels: Labels, units: Units, grids: list[Grid]) -> bool:
    """Rows of two grids that cut across each other cannot both keep equally many: then only whole columns may leave."""
    removable = units.removable
    partitions: dict[int, list[tuple[np.ndarray, np.ndarray, Grid]]] = defaultdict(list)
    for grid in grids:
        rows = units.of_label[grid.labels].reshape(-1, grid.labels.shape[-1])
        if (rows == rows[:1]).all() or not removable[rows].all():
            continue
        mine, first = np.unique(rows, return_index=True)
        line = first // rows.shape[1]
        for kind in np.unique(units.signature[mine]):
            here = units.signature[mine] == kind
            partitions[int(kind)].append((mine[here], line[here], grid))
    changed = False
    for found in partitions.values():
        for i, (one, lines, first) in enumerate(found):
            for other, others, second in found[:i]:
                _, x, y = np.intersect1d(one, other, assume_unique=True, return_indices=True)
                pairs = np.unique(np.stack([lines[x], others[y]]), axis=1).shape[1]
                if pairs > max(len(np.unique(lines[x])), len(np.unique(others[y]))):
                    for grid in (first, second):
                        rows = grid.labels.reshape(-1, grid.labels.shape[-1])
                        labels.unite(
                            np.broadcast_to(rows[:1], rows.shape).reshape(-1), rows.reshape(-1), grid.node
                        )
                    changed = True
    return changed


def _representatives(units: Units) -> np.ndarray:
    """(units,) one label of each."""
    label_of = np.zeros(units.count, int)
    label_of[units.of_label[::-1]] = np.arange(len(units.of_label) - 1, -1, -1)
    return label_of
