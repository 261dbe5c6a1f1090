"""Numbers given by the user, for each group: scores decide which channels, the user how many."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunus.allocation.budget import Choice, choice_of
from prunus.allocation.families import Family, find_families, made_by
from prunus.criteria import Options
from prunus.errors import ConfigError
from prunus.patterns import paths_of
from prunus.structure import Group, Structure


def counts_of_ratios(structure: Structure, ratios: Mapping[Any, Any]) -> dict[str, int]:
    """Group name -> units that stay, from shares of removed filters per layer or group.

    Args:
        structure: the structure.
        ratios: share that leaves, from 0 to below 1, by the name of a group, the path of a layer that makes it, the node
            where it is coupled, a beginning of paths, a glob, a module, or a class of modules. At least one channel (of every row) stays.

    Raises:
        ConfigError: names or numbers that do not fit; all problems at once.
    """
    if not ratios:
        raise ConfigError("ratio names no layer: give a number for all, or {'layer1.0.conv1': 0.3}")
    counts: dict[str, int] = {}
    problems = []
    for name, ratio in ratios.items():
        try:
            groups = groups_of(structure, name)
            share = checked_ratio(ratio, str(name))
        except ConfigError as error:
            problems.append(str(error))
            continue
        for group in groups:
            kept = max(1, round((1 - share) * group.row_size)) * group.row_count
            if counts.setdefault(group.name, kept) != kept:
                problems.append(f"{name}: its channels are those of {group.name!r}, which has another ratio")
    if problems:
        raise ConfigError("; ".join(problems))
    return counts


def checked_ratio(ratio: Any, name: str = "ratio") -> float:
    """The share of removed filters.

    Raises:
        ConfigError: no number from 0 to below 1.
    """
    good = isinstance(ratio, int | float) and not isinstance(ratio, bool)
    if not good or not math.isfinite(ratio) or not 0 <= ratio < 1:
        raise ConfigError(
            f"{name}: {ratio!r} is no share of removed filters, from 0 to below 1 (0.3 removes 30 %)"
        )
    return float(ratio)


def groups_of(structure: Structure, name: Any) -> list[Group]:
    """The group of a name (see `group_of`), or all groups that layers of a pattern, module or class make, as far as they can shrink.

    Raises:
        ConfigError: none.
    """
    paths = paths_of(structure.captured.owner, (name,), "ratio")
    every = [g for g in structure.groups if not g.outer]
    made = [g for g in made_by(structure, paths) if g.held is None and not g.outer]
    if made and not any(name in (g.name, g.node, *g.producers) for g in every):
        return made
    return [group_of(structure, path) for path in paths]


def group_of(structure: Structure, name: str) -> Group:
    """The group of that name, or the one that a layer of that name makes, or that is coupled at a node of that name.

    Raises:
        ConfigError: none or several; says which are similar, or why nothing can be removed there.
    """
    every = [g for g in structure.groups if not g.outer]
    for found in (
        [g for g in structure.groups if g.name == name],
        [g for g in every if name in g.producers],
        [g for g in every if g.node == name],
    ):
        free = [g for g in found if g.held is None]
        if len(free) == 1:
            return free[0]
        if free:
            raise ConfigError(f"{name}: several groups; name one of {', '.join(g.name for g in free)}")
        if found:
            raise ConfigError(f"{name}: nothing can be removed here: it {found[0].held}")
    near = difflib.get_close_matches(str(name), [n for g in every for n in (g.name, *g.producers)], 3)
    raise ConfigError(f"no layer or group {name!r}" + (f"; similar: {', '.join(near)}" if near else ""))


def keep_counts(
    structure: Structure,
    score: Callable[[Sequence[Group]], Mapping[str, np.ndarray]],
    counts: Mapping[str, int],
    free: Sequence[Group],
    multiple_of: int,
    options: Options,
) -> Choice:
    """Keep these numbers of units of the named groups, those that score highest; all others are left alone.

    Args:
        structure: the structure.
        score: gives scores by group name; they decide which units stay.
        counts: group name -> units that stay, over all rows.
        free: groups that may be pruned.
        multiple_of: see `plan`.
        options: see `Options`.

    Raises:
        ConfigError: numbers that do not fit, or groups that are held.
    """
    names = {group.name for group in free}
    held = [name for name in counts if name not in names]
    if held:
        raise ConfigError(f"{', '.join(held)}: held by your settings, so no number can be given")
    wanted, queue = set(counts), list(counts)
    while queue:
        queue += (more := set(structure.group(queue.pop()).tied) - wanted)
        wanted |= more
    scores = score([g for g in free if g.name in wanted])
    scores = {name: -s for name, s in scores.items()} if options.reverse else scores
    return manual(
        find_families(structure, scores, floors=0.0, multiple_of=multiple_of, options=options), counts
    )


def manual(families: list[Family], counts: Mapping[str, int]) -> Choice:
    """Keep these numbers of units, rounded as the families say; groups tied to a named one follow it.

    Args:
        families: of the groups named, and of those tied to them.
        counts: group name -> units that stay, over all rows.

    Raises:
        ConfigError: numbers that cannot be spread over rows, or differ between tied groups; all problems at once.
    """
    problems, kept = [], []
    for family in families:
        wanted: dict[int, str] = {}
        for group in family.groups:
            count = counts.get(group.name)
            if count is None:
                continue
            if count % group.row_count:
                below = count - count % group.row_count
                near = [n for n in (below, below + group.row_count) if 0 < n <= group.size]
                problems.append(
                    f"{group.name}: {count} channels cannot be spread over {group.row_count} rows; "
                    f"keep {' or '.join(map(str, near))}"
                )
            wanted.setdefault(count // group.row_count, group.name)
        if len(wanted) > 1:
            said = ", ".join(f"{n} in {name}" for n, name in wanted.items())
            problems.append(f"these must keep equally many per row: {said}")
        count = next(iter(wanted), family.size)
        if count < family.size and family.allowed == (family.size,):
            problems.append(f"{family.groups[0].name}: keeps as many per row as what is held, so all stay")
        kept.append(family.rounded(max(1, count), "round"))
    if problems:
        raise ConfigError("; ".join(problems))
    return choice_of(families, kept)
