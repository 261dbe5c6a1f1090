"""Whether what leaves together fits every grid: rows that share channels with other groups in other ways."""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from prunus.structure.labels import Grid, Labels, Reason

if TYPE_CHECKING:
    from prunus.structure.solve import Units

REASON = "would take different numbers of channels from rows that must keep equally many"


class Containment:
    """Which units leave with which, over any number of steps."""

    def __init__(self, slab: np.ndarray, member: np.ndarray, count: int) -> None:
        self._up = _grouped(member, slab, count)
        self._down = _grouped(slab, member, count)

    def above(self, unit: int) -> set[int]:
        """The unit and all that contain it."""
        return _reach(self._up, unit)

    def below(self, unit: int) -> set[int]:
        """The unit and all that it contains."""
        return _reach(self._down, unit)


def constrain(labels: Labels, units: Units, grids: list[Grid]) -> bool:
    """Note what the grids say of slabs and of each other; is there anything new?

    A slab that takes whole rows or whole columns of a grid may leave by itself. Slabs that divide every row evenly make rows
    of slabs. Any other would leave a ragged grid, and is held.
    """
    known = {grid.labels.tobytes() for grid in grids}
    label_of = _representatives(units)
    contains = Containment(units.slab, units.member, units.count)
    removable = units.removable
    fresh: dict[bytes, Grid] = {}
    bad: set[int] = set()
    for grid in grids:
        for depth in range(1, grid.labels.ndim):
            rows = units.of_label[grid.labels].reshape(int(np.prod(grid.labels.shape[:depth])), -1)
            if (rows == rows[:1]).all():
                continue
            partial = _partial_slabs(rows, contains, removable)
            for family in _families(units, partial).values():
                found = _blocks(rows, family)
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


def _partial_slabs(rows: np.ndarray, contains: Containment, removable: np.ndarray) -> dict[int, np.ndarray]:
    """Removable slabs that take neither whole rows nor whole columns, with the positions they take."""
    order = np.argsort(rows, axis=None, kind="stable")
    present, start = np.unique(rows.reshape(-1)[order], return_index=True)
    positions = dict(zip(present.tolist(), np.split(order, start[1:]), strict=True))
    slabs = set(chain.from_iterable(contains.above(unit) for unit in positions))
    partial = {}
    for slab in sorted(slab for slab in slabs if removable[slab] and slab not in positions):
        taken = [positions[unit] for unit in contains.below(slab) if unit in positions]
        line, column = np.unravel_index(np.unique(np.concatenate(taken)), rows.shape)
        full = np.bincount(line, minlength=len(rows)) == rows.shape[1]
        rest = ~full[line]
        if rest.any() and rest.sum() != (~full).sum() * len(np.unique(column[rest])):
            partial[slab] = np.unique(np.concatenate(taken))
    return partial


def _families(units: Units, partial: dict[int, np.ndarray]) -> dict[int, dict[int, np.ndarray]]:
    """By the places that they occupy."""
    families: dict[int, dict[int, np.ndarray]] = defaultdict(dict)
    for slab, taken in partial.items():
        families[int(units.signature[slab])][slab] = taken
    return families


def _blocks(rows: np.ndarray, family: dict[int, np.ndarray]) -> np.ndarray | None:
    """(rows, slabs per row) the slabs, where they divide every row evenly."""
    taken = np.concatenate(list(family.values()))
    lines = [np.unique(positions // rows.shape[1]) for positions in family.values()]
    if len(taken) != rows.size or len(np.unique(taken)) != rows.size or any(len(line) > 1 for line in lines):
        return None
    if len({len(positions) for positions in family.values()}) > 1:
        return None
    owner = np.zeros(rows.size, int)
    for slab, positions in family.items():
        owner[positions] = slab
    lists = [list(dict.fromkeys(line.tolist())) for line in owner.reshape(rows.shape)]
    return np.array(lists)


def _unite_crossing(labels: Labels, units: Units, grids: list[Grid]) -> bool:
    """Rows of two grids that cut across each other cannot both keep equally many: then only whole columns may leave."""
    removable = units.removable
    partitions: dict[int, list[tuple[np.ndarray, Grid]]] = defaultdict(list)
    for grid in grids:
        rows = units.of_label[grid.labels].reshape(-1, grid.labels.shape[-1])
        if (rows == rows[:1]).all() or not removable[rows].all():
            continue
        for kind in np.unique(units.signature[rows]):
            of_unit = np.full(units.count, -1)
            of_unit[rows] = np.arange(len(rows))[:, None]
            of_unit[units.signature != kind] = -1
            partitions[int(kind)].append((of_unit, grid))
    changed = False
    for found in partitions.values():
        for i, (a, first) in enumerate(found):
            for b, second in found[:i]:
                both = (a >= 0) & (b >= 0)
                pairs = np.unique(np.stack([a[both], b[both]]), axis=1).shape[1]
                if pairs > max(len(np.unique(a[both])), len(np.unique(b[both]))):
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


def _grouped(keys: np.ndarray, values: np.ndarray, count: int) -> list[list[int]]:
    lists: list[list[int]] = [[] for _ in range(count)]
    for key, value in zip(keys.tolist(), values.tolist(), strict=True):
        lists[key].append(value)
    return lists


def _reach(step: list[list[int]], unit: int) -> set[int]:
    found, fresh = {unit}, [unit]
    while fresh:
        fresh = [x for x in dict.fromkeys(chain.from_iterable(step[u] for u in fresh)) if x not in found]
        found.update(fresh)
    return found
