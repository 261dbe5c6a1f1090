"""The structure of a model: which channels live and die together, and why some cannot."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch

from prunus.capture import Captured
from prunus.capture.garbage import uncollected
from prunus.errors import PlanError
from prunus.structure.composite import with_parts
from prunus.structure.groups import Group, find_groups
from prunus.structure.index import Position, find_positions
from prunus.structure.interpret import Run
from prunus.structure.labels import Labels
from prunus.structure.layers import LayerTable, layer_table
from prunus.structure.packs import Pack, find_packs
from prunus.structure.solve import Units, solve
from prunus.structure.value import Value
from prunus.structure.why import Explanation, explain


@dataclass(frozen=True, eq=False)
class Structure:
    """What `prunus.analyze` returns.

    Attributes:
        captured: the model's graph.
        groups: all groups, those that can be pruned and those that are held, in the order of the graph.
        unknown: operators without a rule, by node.
        keep_class: the constraints of the user's own class are included.
    """

    captured: Captured
    groups: tuple[Group, ...]
    labels: Labels = field(repr=False)
    units: Units = field(repr=False)
    values: dict[str, Any] = field(repr=False)
    packs: tuple[Pack, ...] = field(default=(), repr=False)
    keep_class: bool = False

    @property
    def unknown(self) -> dict[str, str]:
        return self.labels.unknown

    @property
    def prunable(self) -> tuple[Group, ...]:
        """Groups from which units can be removed."""
        return tuple(group for group in self.groups if group.held is None)

    @cached_property
    def positions(self) -> dict[str, tuple[Position, ...]]:
        """Per group that can be pruned: where its units lie along the axes of parameters and buffers."""
        return find_positions(self.captured, self.labels, self.units, self.groups)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanError: no such group; names similar ones.
        """
        for group in self.groups:
            if group.name == name:
                return group
        near = difflib.get_close_matches(str(name), [g.name for g in self.groups], 3)
        hint = f"; similar: {', '.join(near)}" if near else ""
        raise PlanError(f"no group {name!r} in this model{hint}. `print(structure)` lists the groups.")

    def why(self, layer: str) -> Explanation:
        """Why the channels of a layer can or cannot go: which group they are in, and the chain that ties or holds them.

        Args:
            layer: path of a module, name of a parameter or of a group.

        Raises:
            ConfigError: no such layer; names similar ones.
        """
        return explain(self, layer)

    def layers(self) -> LayerTable:
        """What can be pruned as a table that can be edited, one row per group; see `LayerTable`."""
        return layer_table(self.groups)

    def keep_labels(self, keep: dict[str, Any]) -> np.ndarray:
        """(labels,) bool: what stays when every group named in `keep` keeps just these units."""
        removed = np.zeros(self.units.count, bool)
        for name, indices in keep.items():
            group = self.group(name)
            stays = np.zeros(group.size, bool)
            stays[np.asarray(indices, dtype=int)] = True
            removed[group.units[~stays]] = True
        return self.units.effective(removed)

    def emptied(self, keep: np.ndarray) -> list[str]:
        """Axes of which nothing is left under `keep` (labels,): a parameter's, or a part of a value, by name."""
        names = self.captured.names
        axes = [
            f"{names[p.placeholder]} (axis {p.axis})"
            for p in self.labels.places
            if not keep[p.start : p.start + p.size].any()
        ]
        return axes + [
            f"the part made at {node}" for labels, node in self.labels.cuts if not keep[labels].any()
        ]

    def emptied_labels(self, keep: np.ndarray) -> np.ndarray | None:
        """Labels of the first such axis, or None."""
        for place in self.labels.places:
            if not keep[place.start : place.start + place.size].any():
                return np.arange(place.start, place.start + place.size)
        return next((labels for labels, _ in self.labels.cuts if not keep[labels].any()), None)

    @property
    def tracks(self) -> dict[str, tuple[Any, ...]]:
        """Labels of every node's value, as surgery and verification use them (see `Value.tracks`)."""
        return {name: _tracks(value) for name, value in self.values.items()}

    def __str__(self) -> str:
        from prunus.structure.table import as_text

        return as_text(self)


def _tracks(value: Any) -> tuple[Any, ...]:
    if isinstance(value, Value):
        return value.tracks
    if isinstance(value, (tuple, list)):
        return tuple(_tracks(v) for v in value)
    return ()


@uncollected
def find_structure(captured: Captured, *, keep_class: bool = False) -> Structure:
    """Run the graph on labels and solve for the groups.

    Args:
        captured: the model's graph.
        keep_class: packed projections (q, k and v in one layer) must keep equal widths, so that the user's own class can
            still take them apart.
    """
    captured = with_parts(captured)
    with torch.no_grad():
        run = Run(captured).run()
    values = {node.name: value for node, value in run.values.items()}
    packs = () if keep_class else tuple(find_packs(captured, values))
    labels, units = solve(run.labels, packs)
    groups = find_groups(captured, labels, units)
    return Structure(captured, groups, labels, units, values, packs, keep_class)
