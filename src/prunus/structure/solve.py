"""From the statements of a run to units: what can leave, what cannot and why, and what must leave together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from prunus.structure.bound import REASON as ASTRAY
from prunus.structure.bound import astray, hold_emptying
from prunus.structure.control import Control
from prunus.structure.hashing import distinct, hashed
from prunus.structure.labels import Grid, Labels, Reason
from prunus.structure.packs import Pack
from prunus.structure.rows import constrain

_MIX = np.uint64(0x9E3779B97F4A7C15)


@dataclass
class Units:
    """Components of labels, called units, and what is known of each.

    Attributes:
        of_label: (labels,) the unit of every label; unit `of_label[0]` is neutral.
        slab, member: pairs of units; the member leaves with the slab.
        statement: per pair, which statement it belongs to: a slab leaves too when all members of one statement have left.
        held: (units,) index into `reasons`, -1 where nothing holds the unit.
        locked: (units,) leaves only with a slab that contains it.
        produced: (units,) some contraction makes an index of it, or a layer sums over it.
        signature: (units,) equal for units that occupy the same places.
        first: (units,) smallest label of the unit, or of what a slab contains: its order.
        grids: label grids, outermost axes first.
    """

    count: int
    of_label: np.ndarray
    slab: np.ndarray
    member: np.ndarray
    statement: np.ndarray
    held: np.ndarray
    reasons: list[Reason]
    locked: np.ndarray
    produced: np.ndarray
    signature: np.ndarray
    first: np.ndarray
    grids: list[Grid]

    @property
    def removable(self) -> np.ndarray:
        """(units,) may be chosen for removal by themselves."""
        free = (self.held < 0) & self.produced & ~self.locked
        free[self.of_label[0]] = False
        return free

    @cached_property
    def control(self) -> Control:
        """Which units leave with which."""
        return Control.of(self.slab, self.member, self.count)

    def effective(self, removed: np.ndarray) -> np.ndarray:
        """(labels,) which labels stay when the given units (a mask) are removed, with all that leaves with them."""
        gone = removed.copy()
        statements = int(self.statement.max()) + 1 if len(self.statement) else 0
        owner = np.zeros(statements, int)
        owner[self.statement] = self.slab
        for _ in range(64):
            before = int(gone.sum())
            gone[self.member[gone[self.slab]]] = True
            left = np.bincount(self.statement, weights=~gone[self.member], minlength=statements)
            gone[owner[left == 0]] = True
            if int(gone.sum()) == before:
                break
        gone[self.of_label[0]] = False
        return ~gone[self.of_label]


def solve(statements: Labels, packs: Sequence[Pack] = ()) -> tuple[Labels, Units]:
    """Find the units. Grids whose rows cannot shrink independently are factorized into columns until none is left.

    The parts of `packs` shrink independently of each other.

    Returns:
        The statements with those that factorizing has added, and the units that they mean.
    """
    labels = _copy(statements)
    grids = []
    for grid in labels.grids:
        apart = any(pack.lays_out(grid) for pack in packs)
        parts = [part for part in grid.labels if part.ndim > 1] if apart else [grid.labels]
        grids += [Grid(part, grid.node, grid.separable) for part in parts]
    grids = _distinct(grids)
    while True:
        units = _components(labels, grids)
        mixed = [grid for grid in grids if not _is_regular(units, grid)]
        if not mixed and not constrain(labels, units, grids):
            return labels, units
        for grid in mixed:
            _factorize(labels, units, grid)


def _copy(labels: Labels) -> Labels:
    """The same statements, to which more can be added without changing these."""
    copied = copy.copy(labels)
    for name, value in vars(labels).items():
        if isinstance(value, list | dict):
            setattr(copied, name, value.copy())
    copied.made = {key: list(made) for key, made in labels.made.items()}
    return copied


def _components(labels: Labels, grids: list[Grid]) -> Units:
    count, of_label = _strong(labels)
    slab, member, statement = _pairs(labels, of_label)
    reasons: list[Reason] = []
    held = np.full(count, -1)
    for held_labels, reason in labels.holds:
        fresh = of_label[held_labels]
        fresh = fresh[held[fresh] < 0]
        if len(fresh):
            held[fresh] = len(reasons)
            reasons.append(reason)
    reasons.append(Reason("is all that is left of an axis somewhere"))
    hold_emptying(
        [of_label[part] for part, _ in labels.cuts], (slab, member, statement), held, len(reasons) - 1
    )
    produced = np.zeros(count, bool)
    for made in (*labels.produced, *labels.features):
        produced[of_label[made]] = True
    locked = np.zeros(count, bool)
    for lock in labels.locks:
        locked[of_label[lock]] = True
    for slabs, members in labels.locks_within:
        inside = of_label[members]
        locked[inside[inside != of_label[slabs]]] = True  # what is one with its slab leaves with it anyway
    inner = np.bincount(member, minlength=count) > 0
    locked &= inner  # what lost its slab to unification is free again
    wrong = astray(slab, member, _bound(labels, of_label), count)
    locked[wrong] = True  # some larger slab may take it along with what it lacks
    alone = wrong[~inner[wrong] & (held[wrong] < 0)]
    held[alone] = len(reasons)
    reasons.append(Reason(ASTRAY))
    first = np.full(count, labels.count)
    np.minimum.at(first, of_label, np.arange(labels.count))
    own = _signatures(labels, grids, of_label, count)
    signature = own
    for _ in range(8):  # slabs of slabs of slabs: bounded depth
        free = (held[slab] < 0) & (held[member] >= 0)
        held[slab[free]] = held[member[free]]
        produced[slab[produced[member]]] = True
        np.minimum.at(first, slab, first[member])
        before, signature = signature, own.copy()
        np.add.at(signature, slab, before[member] * _MIX + np.uint64(1))
        if np.array_equal(before, signature) and not free.any():
            break
    return Units(
        count, of_label, slab, member, statement, held, reasons, locked, produced, signature, first, grids
    )


def _bound(labels: Labels, of_label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of units (slab, member) where the member leaves with one of its slabs only."""
    if not labels.bound:
        return np.zeros(0, int), np.zeros(0, int)
    slabs, members = (np.concatenate(side) for side in zip(*labels.bound, strict=True))
    return of_label[slabs], of_label[members]


def _strong(labels: Labels) -> tuple[int, np.ndarray]:
    """Units: labels that imply each other. Slabs with equal members are one, a slab with one member is that member."""
    a = np.concatenate([np.zeros(0, int), *(e[0] for e in labels.edges)])
    b = np.concatenate([np.zeros(0, int), *(e[1] for e in labels.edges)])
    s, m, statement = _contains(labels)
    n = labels.count
    while True:
        rows, columns = np.concatenate([a, b, s]), np.concatenate([b, a, m])
        graph = csr_array(coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n)))
        count, of_label = connected_components(graph, directed=True, connection="strong")
        if not len(s):
            return count, of_label
        pairs = distinct(statement * count + of_label[m])
        owner, inside = pairs // count, pairs % count
        present, start, size = np.unique(owner, return_index=True, return_counts=True)
        slab_of = np.zeros(int(statement.max()) + 1, int)
        slab_of[statement] = s
        slabs = slab_of[present]
        keys = np.add.reduceat(hashed(inside), start)
        _, index, inverse = np.unique(keys, return_index=True, return_inverse=True)
        one = np.flatnonzero(size == 1)
        x = np.concatenate([slabs, slabs[one]])
        y = np.concatenate([slabs[index[inverse]], labels_in(of_label, inside[start[one]], n)])
        new = of_label[x] != of_label[y]
        if not new.any():
            return count, of_label
        a, b = np.concatenate([a, x[new]]), np.concatenate([b, y[new]])


def _contains(labels: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All (slab, member) label pairs, with a number for each slab of each statement."""
    if not labels.contains:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0, int)
    s = np.concatenate([c[0] for c in labels.contains])
    m = np.concatenate([c[1] for c in labels.contains])
    source = np.repeat(np.arange(len(labels.contains)), [len(c[0]) for c in labels.contains])
    _, statement = np.unique(source * labels.count + s, return_inverse=True)
    return s, m, statement.reshape(-1)


def labels_in(of_label: np.ndarray, units: np.ndarray, n: int) -> np.ndarray:
    """One label of each of the given units."""
    representative = np.zeros(of_label.max() + 1, int)
    representative[of_label[::-1]] = np.arange(n - 1, -1, -1)
    return representative[units]


def _pairs(labels: Labels, of_label: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    s, m, statement = _contains(labels)
    if not len(s):
        return s, m, statement
    count = int(of_label.max()) + 1
    slabs, members = of_label[s], of_label[m]
    _, index = np.unique(statement * count + members, return_index=True)
    index = index[slabs[index] != members[index]]
    _, numbered = np.unique(statement[index], return_inverse=True)
    return slabs[index], members[index], numbered.reshape(-1)


def _signatures(labels: Labels, grids: list[Grid], of_label: np.ndarray, count: int) -> np.ndarray:
    signature = np.zeros(count, np.uint64)
    for i, place in enumerate(labels.places):
        value = hashed(np.array([3 * i + 1]))[0]
        np.add.at(signature, of_label[place.start : place.start + place.size], value)
    for i, grid in enumerate(grids):
        value = hashed(np.array([3 * i + 2]))[0]
        np.add.at(signature, distinct(of_label[grid.labels]), value)
    parts = {distinct(of_label[part]).tobytes() for part, _ in labels.cuts}
    for part in parts:
        mine = np.frombuffer(part, dtype=of_label.dtype)
        signature[mine] += hashed(mine).sum(dtype=np.uint64)
    return signature


def _distinct(grids: list[Grid]) -> list[Grid]:
    seen: dict[tuple[Any, ...], Grid] = {}
    for grid in grids:
        seen.setdefault((grid.labels.shape, grid.separable, grid.labels.tobytes()), grid)
    return list(seen.values())


def _rows(units: Units, grid: Grid) -> np.ndarray:
    return units.of_label[grid.labels].reshape(-1, grid.labels.shape[-1])


def _is_regular(units: Units, grid: Grid) -> bool:
    """Rows can lose equally many units each: every row is either untouchable or of one kind of distinct free units."""
    rows = _rows(units, grid)
    free = units.removable[rows]
    if not free.any():
        return True
    if (rows == rows[:1]).all():
        return True  # columns are units already
    if grid.separable:
        return False
    if not free.all():
        return False
    kinds = units.signature[rows]
    if (kinds != kinds[:, :1]).any():
        return False
    ordered = np.unique(np.sort(rows, 1), axis=0)
    return len(distinct(ordered)) == ordered.size  # a unit is in one row only, and there once


def _factorize(labels: Labels, units: Units, grid: Grid) -> None:
    """Let only whole columns (and whole rows, where slabs of them exist) leave."""
    rows = grid.labels.reshape(-1, grid.labels.shape[-1])
    if not np.isin(units.of_label[rows], units.member).any():
        first = np.broadcast_to(rows[:1], rows.shape).reshape(-1)
        labels.unite(first, rows.reshape(-1).copy(), grid.node)
        return
    columns = labels.fresh(rows.shape[1]).numpy()
    owner = np.broadcast_to(columns, rows.shape).reshape(-1)
    flat = rows.reshape(-1)
    labels.contains.append((owner[flat > 0], flat[flat > 0], grid.node))
    labels.lock(distinct(flat))
