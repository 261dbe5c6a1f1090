"""Where the units of every group lie along the axes of the parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunus.capture import Captured
from prunus.structure.groups import Group
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
    found: list[list[Position]] = [[] for _ in groups]
    sizes = [place.size for place in labels.places]
    place_of = np.repeat(np.arange(len(sizes)), sizes)
    position = np.concatenate([np.zeros(0, int), *(np.arange(size) for size in sizes)])
    label = position + np.repeat([place.start for place in labels.places], sizes)
    at, owner = units.control.owners(units.of_label[label.astype(int)])
    known = group_of[owner] >= 0
    at, owner = at[known], owner[known]
    keys = place_of[at] * len(groups) + group_of[owner]
    order = np.argsort(keys, kind="stable")
    present, starts = np.unique(keys[order], return_index=True)
    for key, here in zip(present.tolist(), np.split(order, starts[1:]), strict=False):
        place = labels.places[key // len(groups)]
        unit = np.full(place.size, -1)
        unit[position[at[here]]] = index[owner[here]]
        found[key % len(groups)].append(Position(place.placeholder, place.axis, unit))
    return {group.name: tuple(found[g]) for g, group in enumerate(groups) if group.held is None}
