"""Groups: units that occupy the same places, with a name, members and constraints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from prunus.capture import Captured
from prunus.structure.hashing import distinct, hashed
from prunus.structure.labels import Labels
from prunus.structure.naming import Member, group_names, meetings
from prunus.structure.solve import Units


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that live and die together, one unit per index.

    Attributes:
        name: unique in the structure.
        size: number of units.
        members: where the units lie.
        held: why nothing can be removed, or None.
        rows: (rows, units per row) indices of units, where every row must lose equally many (heads, convolution groups);
            None where any subset may go.
        tied: names of other groups that must keep as many units per row as this one.
        outer: its units contain units of other groups (a head contains its channels).
        node: the operator at which the units meet.
        units: ids of the units, in order.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    held: str | None
    rows: np.ndarray | None
    tied: tuple[str, ...]
    outer: bool
    node: str
    units: np.ndarray = field(repr=False)

    @property
    def row_count(self) -> int:
        return 1 if self.rows is None else len(self.rows)

    @property
    def row_size(self) -> int:
        return self.size if self.rows is None else self.rows.shape[1]

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of the modules whose parameters the group occupies, in order."""
        return tuple(dict.fromkeys(m.module for m in self.members))

    @property
    def producers(self) -> tuple[str, ...]:
        """Paths of the modules that make the group's channels."""
        return tuple(dict.fromkeys(m.module for m in self.members if m.produces))

    @property
    def constraints(self) -> tuple[str, ...]:
        """The constraints in words."""
        said = []
        if self.rows is not None:
            said.append(f"{len(self.rows)} rows of {self.rows.shape[1]} lose equally many")
        if self.tied:
            said.append("keeps as many per row as " + ", ".join(self.tied))
        if self.outer:
            said.append("contains channels of other groups")
        return tuple(said)


def find_groups(captured: Captured, labels: Labels, units: Units) -> tuple[Group, ...]:
    """Partition the units into groups, in the order of the graph."""
    removable = units.removable
    produced_labels = np.zeros(labels.count, bool)
    for made in labels.produced:
        produced_labels[made] = True
    group_of, count = _partition(units, removable, _held_units(labels, units, removable))
    members = _members(captured, labels, units, group_of, count, produced_labels)
    met = meetings(captured, labels, units, group_of, count)
    order = np.argsort(group_of, kind="stable")
    starts = np.searchsorted(group_of[order], np.arange(count + 1))
    drafts = []
    for g in range(count):
        mine = order[starts[g] : starts[g + 1]]
        drafts.append(mine[np.argsort(units.first[mine], kind="stable")])
    rows, tied = _rows(units, group_of, removable, drafts)
    outer = _outer(units, group_of, removable, drafts)
    names = group_names(members, met, units, drafts, outer)
    groups = []
    for g, mine in enumerate(drafts):
        held = None if removable[mine[0]] else _reason(units, mine[0])
        groups.append(
            Group(
                names[g],
                len(mine),
                members[g],
                held,
                rows.get(g),
                tuple(names[t] for t in sorted(tied.get(g, ()))),
                bool(outer[g]),
                met[g].node,
                mine,
            )
        )
    return tuple(sorted(groups, key=lambda group: int(units.first[group.units[0]])))


def _outer(units: Units, group_of: np.ndarray, removable: np.ndarray, drafts: list[np.ndarray]) -> np.ndarray:
    """(groups,) whether removing a unit also removes positions that another, finer group has a say in.

    Where two groups cut across each other (heads and channels of heads), the one whose units lie further apart is outer.
    """
    unit, owner = units.control.owners(np.arange(units.count))
    used = removable[owner]
    keys = distinct(unit[used].astype(np.int64) * len(drafts) + group_of[owner[used]])
    pairs = np.stack([keys // max(len(drafts), 1), keys % max(len(drafts), 1)], 1)
    spacing = np.array(
        [np.median(np.diff(np.sort(units.first[mine]))) if len(mine) > 1 else np.inf for mine in drafts]
    )
    outer = np.zeros(len(drafts), bool)
    shared = np.flatnonzero(np.bincount(pairs[:, 0], minlength=units.count) > 1)
    pairs = pairs[np.isin(pairs[:, 0], shared)]
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    sets: set[tuple[int, ...]] = set()
    if len(pairs):  # units in the same groups are alike: look at one of each kind
        _, alike = np.unique(np.add.reduceat(hashed(pairs[:, 1]), starts), return_index=True)
        ends = np.append(starts[1:], len(pairs))
        sets = {tuple(pairs[starts[i] : ends[i], 1].tolist()) for i in alike}
    known = (group_of[units.slab] >= 0) & (group_of[units.member] >= 0)
    contains = distinct(group_of[units.slab[known]] * len(drafts) + group_of[units.member[known]])
    inside = {(int(key) // len(drafts), int(key) % len(drafts)) for key in contains}
    for groups in sets:
        for a in groups:
            for b in groups:
                if (
                    a != b
                    and (b, a) not in inside
                    and ((a, b) in inside or (spacing[a], a) > (spacing[b], b))
                ):
                    outer[a] = True
    return outer


def _held_units(labels: Labels, units: Units, removable: np.ndarray) -> np.ndarray:
    """Units that lie in parameters, are made by a layer and cannot leave in any way: they deserve a reason in the report."""
    reachable = removable.copy()
    for _ in range(8):
        before = int(reachable.sum())
        reachable[units.member[reachable[units.slab]]] = True
        if int(reachable.sum()) == before:
            break
    placed = np.zeros(units.count, bool)
    for place in labels.places:
        placed[units.of_label[place.start : place.start + place.size]] = True
    return placed & ~reachable & units.produced


def _partition(units: Units, removable: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, int]:
    group_of = np.full(units.count, -1)
    chosen = np.flatnonzero(removable | held)
    if not len(chosen):
        return group_of, 0
    reason = np.where(removable[chosen], -2, units.held[chosen])
    text: dict[object, int] = {-2: 0}
    present, which = np.unique(reason, return_inverse=True)
    # units held for one reason together
    codes = np.array([text.setdefault(_code(units, r), len(text)) for r in present.tolist()])[which]
    keys = np.stack([units.signature[chosen].astype(np.int64), codes], 1)
    _, inverse = np.unique(keys, axis=0, return_inverse=True)
    group_of[chosen] = inverse.reshape(-1)
    return group_of, int(inverse.max()) + 1


def _code(units: Units, reason: int) -> object:
    return int(reason) if reason < 0 else (units.reasons[reason].text, units.reasons[reason].node)


def _reason(units: Units, unit: int) -> str:
    index = int(units.held[unit])
    if index < 0:
        if units.locked[unit]:
            owners = units.slab[units.member == unit]
            held = [units.held[o] for o in owners if units.held[o] >= 0]
            if held:
                return _sentence(units, int(held[0]))
        return "no layer produces it by itself"
    return _sentence(units, index)


def _sentence(units: Units, index: int) -> str:
    reason = units.reasons[index]
    return f"{reason.text} (at {reason.node})" if reason.node else reason.text


def _members(
    captured: Captured, labels: Labels, units: Units, group_of: np.ndarray, count: int, produced: np.ndarray
) -> list[tuple[Member, ...]]:
    if not labels.places or not count:
        return [()] * count
    spans = [np.arange(place.start, place.start + place.size) for place in labels.places]
    at, owner = units.control.owners(units.of_label[np.concatenate(spans)])
    place_of = np.repeat(np.arange(len(spans)), [len(span) for span in spans])[at]
    known = group_of[owner] >= 0
    found: list[list[Member]] = [[] for _ in range(count)]
    for key in distinct(place_of[known] * count + group_of[owner[known]]).tolist():
        place = labels.places[key // count]
        made = bool(produced[place.start : place.start + place.size].any())
        found[key % count].append(Member(captured.names[place.placeholder], place.axis, made))
    return [tuple({(m.parameter, m.axis): m for m in members}.values()) for members in found]


def _rows(
    units: Units, group_of: np.ndarray, removable: np.ndarray, drafts: list[np.ndarray]
) -> tuple[dict[int, np.ndarray], dict[int, set[int]]]:
    index = np.zeros(units.count, int)
    for mine in drafts:
        index[mine] = np.arange(len(mine))
    rows: dict[int, np.ndarray] = {}
    tied: dict[int, set[int]] = {}
    for grid in units.grids:
        mat = units.of_label[grid.labels].reshape(-1, grid.labels.shape[-1])
        if not removable[mat].any() or (mat == mat[:1]).all():
            continue
        owner = group_of[mat[:, 0]]
        present = np.unique(owner)
        for g in present:
            part = np.unique(np.sort(index[mat[owner == g]], 1), axis=0)
            if g not in rows or part.shape[1] < rows[g].shape[1]:
                rows[g] = part
        for g in present:
            tied.setdefault(g, set()).update(int(t) for t in present if t != g)
    rows = {g: r for g, r in rows.items() if len(r) > 1}
    tied = _closed(tied)
    _even_out(rows, tied, [len(mine) for mine in drafts])
    return rows, tied


def _even_out(rows: dict[int, np.ndarray], tied: dict[int, set[int]], sizes: list[int]) -> None:
    """Where what is tied has rows of different sizes, cut the longer ones up, so that all keep as many per row."""
    for g, others in tied.items():
        together = sorted({g, *others})
        lengths = [rows[each].shape[1] if each in rows else sizes[each] for each in together]
        step = math.gcd(*lengths)
        for each, length in zip(together, lengths, strict=True):
            if length > step:
                rows[each] = rows.get(each, np.arange(sizes[each])[None]).reshape(-1, step)


def _closed(tied: dict[int, set[int]]) -> dict[int, set[int]]:
    """What is tied to what is tied, too: where one is in two grids, all of both keep as many."""
    closed: dict[int, set[int]] = {}
    for g in tied:
        if g in closed:
            continue
        together, todo = {g}, [g]
        while todo:
            fresh = tied.get(todo.pop(), set()) - together
            together |= fresh
            todo += fresh
        closed |= {each: together - {each} for each in together}
    return {g: others for g, others in closed.items() if others}
