"""Families: groups that keep equally many units, and the order in which they would lose them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.criteria.options import Options
from prunus.errors import ConfigError
from prunus.patterns import checked_patterns, matches, paths_of
from prunus.structure import Group, Structure

SMALL = 8  # units; smaller groups are rounded together, not each for itself
_DEFAULT = Options()
DEFAULT_FLOOR = 0.05  # of a group's channels: a global ranking must not empty a layer


@dataclass(frozen=True, eq=False)
class Family:
    """Groups tied to one number: how many units every row keeps.

    Attributes:
        groups: the tied groups.
        order: per group, (rows, units per row) indices of units, best first.
        worth: (units per row,) worth of what the j-th kept unit per row adds; falls with j.
        allowed: ascending numbers of units per row that may be kept.
        step_op: how other numbers are rounded to these; None leaves it to the allocator.
        limit: what keeps the allowed numbers up; empty where nothing does.
    """

    groups: tuple[Group, ...]
    order: tuple[np.ndarray, ...]
    worth: np.ndarray
    allowed: tuple[int, ...]
    step_op: str | None = None
    limit: str = ""

    @property
    def size(self) -> int:
        return self.groups[0].row_size

    @property
    def units(self) -> int:
        return sum(group.size for group in self.groups)

    def rounded(self, count: int, by_default: str) -> int:
        """The allowed number for `count`, rounded as `step_op` says, which `by_default` stands in for.

        `round` takes the nearest, the larger of two equally near. Beyond the ends, the least or all.
        """
        op = self.step_op or by_default
        if op == "round":
            return min(self.allowed, key=lambda k: (abs(k - count), -k))
        if op == "round_down":
            return next((k for k in reversed(self.allowed) if k <= count), self.allowed[0])
        return next((k for k in self.allowed if k >= count), self.allowed[-1])

    def rounding_error(self) -> float:
        """How much more than it was asked for `rounded` may keep, at the most, where nothing forbids it."""
        gap = max(np.diff(self.allowed), default=self.size)
        return float(gap) if self.step_op == "round_up" else float(gap) / 2

    def keep(self, count: int) -> dict[str, np.ndarray]:
        """Indices that every group keeps when each row keeps `count`."""
        return {
            g.name: np.sort(rows[:, :count].reshape(-1))
            for g, rows in zip(self.groups, self.order, strict=True)
        }


def held_by(structure: Structure, given: Sequence[Any], option: str = "hold") -> set[str]:
    """Names of groups that touch a layer matching one of the patterns (paths, prefixes of paths, globs, modules or classes).

    Raises:
        ConfigError: a pattern that matches nothing; names similar layers.
    """
    patterns = paths_of(structure.captured.owner, given, option)
    names: set[str] = set()
    modules = {m for group in structure.groups for m in group.modules}
    every = {p.rpartition(".")[0] for p in structure.captured.names.values()} | set(
        structure.captured.names.values()
    )
    missing = []
    for pattern in patterns:
        hit = [
            g.name
            for g in structure.groups
            if matches(pattern, g.name)
            or any(matches(pattern, m) for m in (*g.modules, *(m.parameter for m in g.members)))
        ]
        if not hit and not any(matches(pattern, path) for path in every):
            near = difflib.get_close_matches(pattern, modules | set(g.name for g in structure.groups), 3)
            missing.append(f"{pattern!r}" + (f" (similar: {', '.join(near)})" if near else ""))
        names.update(hit)
    if missing:
        raise ConfigError(
            f"{option}: no layer or group matches {'; '.join(missing)}. `print(structure)` lists them."
        )
    return names


def contained(structure: Structure, groups: Sequence[Group]) -> set[str]:
    """Names of the other groups of which all units leave with units of these, as channels of heads leave with heads."""
    named = {group.name for group in groups}
    marked = np.zeros(structure.units.count, bool)
    for group in groups:
        marked[group.units] = True
    found = set()
    for group in structure.prunable:
        at, owner = structure.units.control.owners(group.units)
        if group.name not in named and len(np.unique(at[marked[owner]])) == group.size:
            found.add(group.name)
    return found


def find_families(
    structure: Structure,
    scores: Mapping[str, np.ndarray],
    *,
    floors: float | Mapping[str, float | int] | None,
    multiple_of: int,
    options: Options = _DEFAULT,
) -> list[Family]:
    """Families of the groups that are scored, in the order of the graph.

    Args:
        structure: the structure.
        scores: (units,) per group name; high = keep. Already comparable between groups.
        floors: least share (or number, for ints) of units that stay: one for all, or per pattern. None means 5 % of all but
            the smallest groups.
        multiple_of: what a group keeps is a multiple of this, or everything.
        options: how rows are combined, and how numbers are rounded.
    """
    checked_multiple(multiple_of, options)
    step = max(multiple_of, options.step)
    by_name = {g.name: g for g in structure.groups}
    least = _floors(structure, floors)
    done: set[str] = set()
    families = []
    # "count": the j-th worst leaves once every row, choosing alone, would lose j
    combined = np.max if options.group_policy == "count" else np.mean
    for name in scores:
        if name in done:
            continue
        names = _tied(by_name, name, set(scores))
        done |= names
        groups = tuple(g for g in structure.groups if g.name in names)
        order, worth = [], []
        for group in groups:
            rows = group.rows if group.rows is not None else np.arange(group.size)[None]
            values = scores[group.name][rows]
            best = np.argsort(-values, axis=1, kind="stable")
            order.append(np.take_along_axis(rows, best, 1))
            worth.append(combined(np.take_along_axis(values, best, 1), axis=0))
        complete = names == _tied(by_name, name, set(by_name))
        floor = max(least.get(g.name, 0.0) for g in groups)
        allowed = _allowed(groups, floor, step) if complete else (groups[0].row_size,)
        op = options.step_op if options.step > 1 else None
        limit = _limit(groups, allowed, step, floor) if complete else "tied to what is held"
        families.append(Family(groups, tuple(order), combined(worth, axis=0), allowed, op, limit))
    return families


def _limit(groups: tuple[Group, ...], allowed: tuple[int, ...], step: int, floor: float) -> str:
    """The setting that leaves all of a family no number below half of its channels, if one does."""
    if allowed[0] < groups[0].row_size / 2 or allowed[0] == 1:
        return ""
    return (
        f"multiples of {step}"
        if _allowed(groups, 0.0, step)[0] >= groups[0].row_size / 2
        else f"a floor of {floor:.2g}"
    )


def checked_multiple(multiple_of: Any, options: Options = _DEFAULT) -> None:
    """Refuse what is no multiple, or says the same as an option.

    Raises:
        ConfigError: it is.
    """
    if not isinstance(multiple_of, int) or isinstance(multiple_of, bool) or multiple_of < 1:
        raise ConfigError(f"multiple_of must be a whole number of at least 1, got {multiple_of!r}")
    if multiple_of > 1 and options.step_size > 1:
        raise ConfigError(
            f"multiple_of={multiple_of} and step_size={options.step_size} say the same: give one of them"
        )


def _tied(by_name: dict[str, Group], name: str, among: set[str]) -> set[str]:
    found, queue = {name}, [name]
    while queue:
        for other in by_name[queue.pop()].tied:
            if other in among and other not in found:
                found.add(other)
                queue.append(other)
    return found


def _allowed(groups: tuple[Group, ...], floor: float, multiple_of: int) -> tuple[int, ...]:
    size = groups[0].row_size
    step = math.lcm(*(multiple_of // math.gcd(multiple_of, g.row_count) for g in groups))
    least = max(0 if _may_vanish(groups) else 1, math.ceil(floor * size - 1e-9))
    return (*range(-(-least // step) * step, size, step), size)


def _may_vanish(groups: tuple[Group, ...]) -> bool:
    """Whether all of a small group may go, as long as something stays beside it."""
    return len(groups) == 1 and groups[0].row_count == 1 and groups[0].row_size < SMALL


def checked_floors(floors: Any, structure: Structure | None = None) -> None:
    """Refuse floors that are no shares or numbers, and with a structure, those of layers that it does not have.

    Raises:
        ConfigError: it has such.
    """
    if floors is None:
        return
    for pattern, value in (floors if isinstance(floors, Mapping) else {"*": floors}).items():
        good = (isinstance(value, int) and not isinstance(value, bool) and value >= 0) or (
            isinstance(value, float) and 0 <= value <= 1
        )
        if not good:
            raise ConfigError(
                f"floor {value!r} for {pattern!r}: give a fraction from 0 to 1, or a whole number of channels"
            )
        checked_patterns(pattern, "floors")
        if structure is not None and pattern != "*":
            _made_by(structure, pattern)


def _floors(structure: Structure, floors: float | Mapping[str, float | int] | None) -> dict[str, float]:
    """Group name -> least share that stays."""
    if floors is None:
        return {g.name: 0.0 if _may_vanish((g,)) else DEFAULT_FLOOR for g in structure.groups}
    checked_floors(floors)
    least: dict[str, float] = {}
    for pattern, value in (floors if isinstance(floors, Mapping) else {"*": floors}).items():
        for group in structure.groups if pattern == "*" else _made_by(structure, pattern):
            share = value if isinstance(value, float) else min(1.0, value / group.size)
            least[group.name] = max(least.get(group.name, 0.0), float(share))
    return least


def _made_by(structure: Structure, given: Any) -> list[Group]:
    """Groups of that name, or made by a layer of that name; those that pass through it where it makes none."""
    touched = held_by(structure, (given,), "floors")
    return made_by(structure, paths_of(structure.captured.owner, (given,), "floors")) or [
        g for g in structure.groups if g.name in touched
    ]


def made_by(structure: Structure, patterns: Sequence[str]) -> list[Group]:
    """Groups of such names, or made by layers of such paths."""
    return [
        g
        for g in structure.groups
        if any(matches(p, name) for p in patterns for name in (g.name, *g.producers))
    ]
