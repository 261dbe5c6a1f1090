"""What `keep_class` adds to a structure: numbers that the user's class has only once must stay one number.

An attribute that makes the width of queries and of values (`head_dim` in both views) cannot say two widths, and a split into
equal parts cannot make unequal ones. The forward is run once on integers that remember where they come from; groups whose
sizes one of them states are tied, so that they keep equally many.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import fx

from prunus.structure import Group, Structure, Value
from prunus.structure.labels import varying
from prunus.surgery.align import align, given_arguments, is_split
from prunus.surgery.attributes import Slot
from prunus.surgery.own_forward import recorded_forward
from prunus.surgery.provenance import TracedInt, leaves
from prunus.surgery.record import Call

__all__ = ["groups_at", "with_class_ties"]

_SIZES = ("size", "shape", "sizes")


@dataclass
class _Stated:
    """What one number in the code states the size of."""

    groups: dict[str, Group] = field(default_factory=dict)
    fixed: bool = False  # an axis along which nothing can be removed
    said: str = ""


def with_class_ties(structure: Structure) -> Structure:
    """The structure with groups tied (or held) that the class has one number for; as it was where the model does not run."""
    captured = structure.captured
    if captured.model is None:
        return structure
    try:
        recording = recorded_forward(captured.model, captured)
    except Exception:  # noqa: BLE001  whatever the user's classes raise: write-back will say it
        return structure
    alignment = align(recording, captured, captured)
    index = _Index(structure)
    stated: dict[Hashable, _Stated] = defaultdict(_Stated)
    for call, node in zip(alignment.calls, alignment.old, strict=True):
        if node is None:
            continue
        for source, said, value, axis in _sizes_stated(structure, call, node):
            entry = stated[source]
            entry.said = entry.said or said
            groups = index.along(value, axis)
            entry.fixed |= groups is None
            entry.groups.update({g.name: g for g in groups or ()})
    return _constrained(structure, [entry for entry in stated.values() if entry.groups])


def groups_at(structure: Structure, nodes: Iterable[str]) -> set[str]:
    """Names of the groups whose removal changes the values of some nodes."""
    index = _Index(structure)
    return {
        name for node in nodes for value in _values(structure.values.get(node)) for name in index.of(value)
    }


def _values(value: Any) -> list[Value]:
    return (
        [value]
        if isinstance(value, Value)
        else [v for part in value for v in _values(part)]
        if isinstance(value, (tuple, list))
        else []
    )


def _sizes_stated(
    structure: Structure, call: Call, node: fx.Node
) -> Iterator[tuple[Hashable, str, Value, int]]:
    """(source, in words, value, axis) for every axis whose size comes from one number in the code."""
    value = structure.values.get(node.name)
    given = given_arguments(call, node)
    if is_split(node) and isinstance(value, tuple):
        number = given.get("split_size", given.get("split_sizes", given.get("chunks")))
        dim = given.get("dim", 0)
        if isinstance(number, int) and isinstance(dim, int):
            source = number.source if isinstance(number, TracedInt) else ("parts", node.name)
            for part in value:
                if isinstance(part, Value):
                    yield source, f"a split at {call.place}", part, dim % len(part.shape)
        return
    if not isinstance(value, Value):
        return
    sizes = next((given[name] for name in _SIZES if name in given), None)
    if not isinstance(sizes, (tuple, list)) or len(sizes) != len(value.shape):
        return
    for axis, size in enumerate(sizes):
        if isinstance(size, TracedInt) and any(isinstance(leaf, Slot) for leaf in leaves(size.source)):
            slot = next(leaf for leaf in leaves(size.source) if isinstance(leaf, Slot))
            yield size.source, str(slot), value, axis


class _Index:
    """Which groups lie along an axis of a value."""

    def __init__(self, structure: Structure) -> None:
        self.structure = structure
        self.group_of = np.full(structure.units.count, -1)
        self.groups = [g for g in structure.prunable if not g.outer]
        for i, group in enumerate(self.groups):
            self.group_of[group.units] = i
        self.outer = np.zeros(structure.units.count, bool)
        for group in structure.prunable:
            self.outer[group.units] |= group.outer

    def of(self, value: Value) -> set[str]:
        """Names of all groups that a value has units of, or of the channels in them."""
        owners = set()
        for track in value.tracks:
            units = np.unique(self.structure.units.of_label[track.unique().numpy()])
            owners.update(self.structure.units.control.owners(units)[1].tolist())
        return {g.name for g in self.structure.prunable if owners.intersection(g.units.tolist())}

    def along(self, value: Value, axis: int) -> list[Group] | None:
        """Groups whose removal makes the axis shorter; None where something along it cannot leave."""
        found: dict[int, None] = {}
        if value.shape[axis] == 1:
            return []
        tracks = [track for track in value.tracks if axis in varying(track)]
        if not tracks:
            return None
        for track in tracks:
            line = track.movedim(axis, 0)
            line = line[(slice(None), *(0,) * (line.dim() - 1))]
            units = self.structure.units.of_label[line.numpy()]
            at, owners = self.structure.units.control.owners(units)
            of = self.group_of[owners]
            found.update(dict.fromkeys(of[of >= 0].tolist()))
            covered = np.zeros(len(units), bool)
            covered[at[(of >= 0) | self.outer[owners]]] = True
            if not covered.all():
                return None
        return [self.groups[i] for i in found]


def _constrained(structure: Structure, stated: list[_Stated]) -> Structure:
    tied: dict[str, set[str]] = defaultdict(set)
    held: dict[str, str] = {}
    for entry in stated:
        names = set(entry.groups)
        if entry.fixed or len({g.row_size for g in entry.groups.values()}) > 1:
            held.update(dict.fromkeys(names, f"must keep the size that {entry.said} states"))
        for name in names:
            tied[name] |= names - {name}
    spread = list(held)
    while spread:  # what is tied to something held is held
        name = spread.pop()
        for other in (*tied[name], *structure.group(name).tied):
            if other not in held:
                held[other] = held[name]
                spread.append(other)
    groups: list[Any] = []
    for group in structure.groups:
        extra = tuple(sorted(tied[group.name] - set(group.tied) - set(held)))
        if group.name in held and group.held is None:
            groups.append(dataclasses.replace(group, held=held[group.name], tied=()))
        elif extra:
            groups.append(dataclasses.replace(group, tied=(*group.tied, *extra)))
        else:
            groups.append(group)
    return dataclasses.replace(structure, groups=tuple(groups))
