"""Where in the graph the channels of groups lie: found from labels, whatever the operators are called."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, fx

from prunus.capture import size_of
from prunus.evidence.facing import Facing, facing
from prunus.structure import Group, Structure
from prunus.structure.labels import compact, varying
from prunus.structure.value import Value

__all__ = ["Place", "Places", "Spot", "joined"]


@dataclass(frozen=True, eq=False)
class Spot:
    """Where the units of one group lie in a value.

    Attributes:
        axes: axes of the value along which the label varies.
        units: (sizes of those axes) the unit at each position, -1 where there is none.
    """

    axes: tuple[int, ...]
    units: np.ndarray

    @property
    def per_unit(self) -> float:
        """Positions for each unit."""
        used = self.units[self.units >= 0]
        return len(used) / max(len(np.unique(used)), 1)


@dataclass(frozen=True, eq=False)
class Place:
    """One value that is looked at for a group.

    Attributes:
        group: the group's name.
        layer: path of the layer whose output (or input) it is; the node's name where no parameter is involved.
        node: whose value it is.
        reader: the node that reads it, None where the value itself is meant.
        spot: where the units lie.
        other: the second operand, for products.
        other_spot: where the units lie in that.
        facing: how both face each other.
    """

    group: str
    layer: str
    node: fx.Node
    spot: Spot
    reader: fx.Node | None = None
    other: fx.Node | None = None
    other_spot: Spot | None = None
    facing: Facing | None = None


class Places:
    """Looks up where groups are made, read and multiplied.

    Args:
        structure: the structure.
        groups: those that are asked for.
    """

    def __init__(self, structure: Structure, groups: Sequence[Group]) -> None:
        self.structure = structure
        self.groups = tuple(groups)
        self._number, self._index = _numbering(structure, groups)
        self.dependent = structure.captured.input_dependent()
        self._works = {work.node for work in structure.labels.works}
        self._spots: dict[fx.Node, dict[int, list[Spot]]] = {}
        self._seen: dict[object, dict[int, Spot]] = {}
        self._makers = [frozenset(group.producers) for group in groups]
        self.made: list[Place] = []
        self.read: list[Place] = []
        self.product: list[Place] = []
        for node in structure.captured.graph.nodes:
            if node.op == "call_function" and node in self.dependent:
                self._visit(node)
        self.used = self._stepped_back(self.read)

    def at(self, where: str) -> list[Place]:
        """The places of one kind, in the order of the graph; see `Need`."""
        return {"made": self.made, "used": self.used, "read": self.read, "product": self.product}[where]

    # ------------------------------------------------------------------ labels
    def spots(self, node: fx.Node) -> dict[int, list[Spot]]:
        """Number of each group that lies in a node's value -> where, once for each track."""
        if node not in self._spots:
            value = self.structure.values.get(node.name)
            found: dict[int, list[Spot]] = {}
            for track in value.tracks if isinstance(value, Value) else ():
                for number, spot in self.of_track(track).items():
                    found.setdefault(number, []).append(spot)
            self._spots[node] = found
        return self._spots[node]

    def of_track(self, track: Tensor) -> dict[int, Spot]:
        """Number of each group that lies in a track -> where."""
        axes = varying(track)
        key = (track.data_ptr(), track.stride(), tuple(track.shape))
        if key not in self._seen:
            self._seen[key] = self._units(compact(track, axes).numpy(), axes)
        return self._seen[key]

    def _units(self, labels: np.ndarray, axes: tuple[int, ...]) -> dict[int, Spot]:
        units = self.structure.units
        at, owner = units.control.owners(units.of_label[labels.reshape(-1)])
        number = self._number[owner]
        found = {}
        for group in np.unique(number[number >= 0]).tolist():
            mine = number == group
            index = np.full(labels.size, -1)
            index[at[mine]] = self._index[owner[mine]]
            found[group] = Spot(axes, index.reshape(labels.shape))
        return found

    # ------------------------------------------------------------------ what a node does to groups
    def _visit(self, node: fx.Node) -> None:
        operands = [n for n in node.all_input_nodes if n in self.dependent]
        weights = [n for n in node.all_input_nodes if n not in self.dependent]
        out = self.spots(node)
        carried: dict[int, list[fx.Node]] = {}
        for operand in operands:
            for number in self.spots(operand):
                carried.setdefault(number, []).append(operand)
        works = node.name in self._works
        twice = {n for w in weights for n, spots in self.spots(w).items() if works and len(spots) > 1}
        for number, spots in out.items():
            layer = self._layer(weights, number)
            if layer in self._makers[number] and (number not in carried or number in twice):
                self.made.append(Place(self.groups[number].name, layer or node.name, node, spots[0]))
        for number, sources in carried.items():
            if works and (number not in out or number in twice):
                self._reads(node, number, sources, weights)

    def _reads(self, node: fx.Node, number: int, sources: list[fx.Node], weights: list[fx.Node]) -> None:
        name = self.groups[number].name
        spots = [self.spots(source)[number][0] for source in sources]
        layer = self._layer(weights, number) or node.name
        if len(sources) > 1:
            self._multiplies(node, number, sources)
            self.read.append(Place(name, f"{node.name}:1", sources[1], spots[1], node))
            layer = f"{node.name}:0"
        self.read.append(Place(name, layer, sources[0], spots[0], node))

    def _multiplies(self, node: fx.Node, number: int, sources: list[fx.Node]) -> None:
        sides = facing(node, sources[0], sources[1])
        if sides is not None:
            name = self.groups[number].name
            left, right = (joined(self.spots(source)[number]) for source in sources[:2])
            self.product.append(Place(name, node.name, sources[0], left, node, sources[1], right, sides))

    def _layer(self, weights: Iterable[fx.Node], number: int) -> str | None:
        """Path of the layer whose weight, among these operands or behind them, has the group's channels."""
        names, seen, queue = self.structure.captured.names, set(), list(weights)
        while queue:
            node = queue.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if node.op == "placeholder" and node.name in names and self.spots(node).get(number):
                return names[node.name].rpartition(".")[0] or names[node.name]
            queue += node.all_input_nodes
        return None

    def _stepped_back(self, reads: list[Place]) -> list[Place]:
        """Each value once, taken before operators that only flatten maps or leave one number of each."""
        found: dict[tuple[str, fx.Node], Place] = {}
        numbers = {group.name: number for number, group in enumerate(self.groups)}
        for place in reads:
            node, spot = place.node, place.spot
            while (before := self._before(node, spot, numbers[place.group])) is not None:
                node, spot = before
            found.setdefault((place.group, node), Place(place.group, place.layer, node, spot))
        return list(found.values())

    def _before(self, node: fx.Node, spot: Spot, number: int) -> tuple[fx.Node, Spot] | None:
        operands = [n for n in node.all_input_nodes if n in self.dependent and number in self.spots(n)]
        if len(operands) != 1 or node.name in self._works:
            return None
        earlier = self.spots(operands[0])[number][0]
        flattened = earlier.per_unit < spot.per_unit
        reduced = _map_size(node, spot) == 1 < _map_size(operands[0], earlier)
        return (operands[0], earlier) if flattened or reduced else None


def joined(spots: list[Spot]) -> Spot:
    """Several tracks of one group as one: a table that all heads share says less than the layer that makes them."""
    axes = tuple(sorted({axis for spot in spots for axis in spot.axes}))
    units = np.array(-1)
    for spot in spots:
        sizes = dict(zip(spot.axes, spot.units.shape, strict=True))
        units = np.maximum(units, spot.units.reshape([sizes.get(axis, 1) for axis in axes]))
    return Spot(axes, units)


def _map_size(node: fx.Node, spot: Spot) -> int:
    """Numbers per sample and position, with the first axis without labels as that of samples."""
    rest = [size for axis, size in enumerate(size_of(node)) if axis not in spot.axes]
    return math.prod(rest[1:])


def _numbering(structure: Structure, groups: Sequence[Group]) -> tuple[np.ndarray, np.ndarray]:
    """(units,) the number of the group among these, -1 for none, and (units,) the index in it."""
    number = np.full(structure.units.count, -1)
    index = np.zeros(structure.units.count, int)
    for i, group in enumerate(groups):
        number[group.units] = i
        index[group.units] = np.arange(group.size)
    return number, index
