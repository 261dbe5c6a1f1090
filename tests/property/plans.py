"""Random plans that satisfy the constraints of a structure."""

import numpy as np

from prunus.structure import Structure
from prunus.structure.groups import Group
from tests.property.choices import Pick


def plan(pick: Pick, structure: Structure) -> dict[str, np.ndarray]:
    """Kept units by group: inner groups, outer ones or both; every row keeps as many, and tied groups the same number."""
    groups = list(structure.prunable)
    levels = ["both", "both", "one"]
    if len({group.outer for group in groups}) > 1:
        levels += ["inner", "outer"]
    level = pick.one_of(levels)
    if level == "one" and groups:
        groups = [pick.one_of(groups)]
        groups += [structure.group(name) for name in groups[0].tied]
    elif level in ("inner", "outer"):
        groups = [group for group in groups if group.outer == (level == "outer")]
    per_row: dict[str, int] = {}
    kept = {}
    for group in groups:
        if group.name in kept:
            continue
        known = [per_row[name] for name in group.tied if name in per_row]
        # mostly fewer than all, sometimes one only
        number = known[0] if known else min(pick.integer(1, group.row_size), pick.integer(1, group.row_size))
        per_row[group.name] = number
        kept[group.name] = units(pick, group, number)
    return kept


def units(pick: Pick, group: Group, number: int) -> np.ndarray:
    if group.rows is None:
        return pick.subset(group.size, number)
    return np.sort(np.concatenate([row[pick.subset(len(row), number)] for row in group.rows]))
