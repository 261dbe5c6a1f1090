"""Where the units of every group lie along the axes of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunus.capture import Captured
from prunus.structure.groups import Group, control
from prunus.structure.labels import Labels
from prunus.structure.solve import Units


@dataclass(frozen=True, eq=False)
class Position:
    """One axis of one tensor that a group occupies.

    Attributes:
        placeholder: the tensor's placeholder in the graph.
        axis: the axis.
        unit: (axis size,) index of the unit of the group at each position, -1 where it has none.
    """

    placeholder: str
    axis: int
    unit: np.ndarray


def find_positions(
    captured: Captured, labels: Labels, units: Units, groups: tuple[Group, ...]
) -> dict[str, tuple[Position, ...]]:
    """For every group that can be pruned: the positions of its units, per axis."""
    group_of, index = np.full(units.count, -1), np.zeros(units.count, int)
    for g, group in enumerate(groups):
        if group.held is None:
            group_of[group.units] = g
            index[group.units] = np.arange(group.size)
    owners = control(units)
    found: list[list[Position]] = [[] for _ in groups]
    for place in labels.places:
        mine = owners[units.of_label[place.start : place.start + place.size]]
        position = np.repeat(np.arange(place.size), np.diff(mine.indptr))
        group = group_of[mine.indices]
        for g in np.unique(group[group >= 0]):
            here = group == g
            unit = np.full(place.size, -1)
            unit[position[here]] = index[mine.indices[here]]
            found[g].append(Position(place.placeholder, place.axis, unit))
    return {group.name: tuple(found[g]) for g, group in enumerate(groups) if group.held is None}
