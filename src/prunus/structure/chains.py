"""Chains of statements: how one label comes to be tied to another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import breadth_first_order

from prunus.structure.labels import Labels
from prunus.structure.solve import Units


@dataclass(frozen=True)
class Tie:
    """One statement of a chain: at a node, a label is tied to the next one.

    Attributes:
        node: name of the node that says so.
        label: the label that the chain arrives at.
        kind: "same": they stay or leave together; "row": the next is a row that contains the label; "part": it is part of it.
    """

    node: str
    label: int
    kind: str


class Chains:
    """Shortest chains from one label to all others.

    What is united leads both ways, a row leads to what it contains, and what leaves with its row only leads to the row.
    """

    def __init__(self, labels: Labels, units: Units, start: int) -> None:
        self._labels = labels
        self.start = start
        a, b = _pairs(labels.edges)
        slab, member = _pairs(labels.contains)
        up = units.locked[units.of_label[member]] | (units.of_label[member] == units.of_label[slab])
        rows = np.concatenate([a, b, slab, member[up]])
        columns = np.concatenate([b, a, member, slab[up]])
        n = labels.count
        graph = csr_array(coo_array((np.ones(len(rows), np.int8), (rows, columns)), shape=(n, n)))
        order, self._before = breadth_first_order(graph, start, directed=True)
        self._rank = np.full(n, n)
        self._rank[order] = np.arange(len(order))

    def nearest(self, targets: np.ndarray) -> int | None:
        """The one of `targets` that the chain reaches first; None if it reaches none."""
        found = targets[self._rank[targets] < len(self._rank)]
        return int(found[np.argmin(self._rank[found])]) if len(found) else None

    def to(self, label: int) -> tuple[Tie, ...]:
        """The statements from the start to a label that is reached."""
        steps = []
        while label != self.start:
            before = int(self._before[label])
            steps.append(self._tie(before, label))
            label = before
        return tuple(reversed(steps))

    def _tie(self, one: int, other: int) -> Tie:
        for a, b, node in self._labels.edges:
            if ((a == one) & (b == other)).any() or ((a == other) & (b == one)).any():
                return Tie(node, other, "same")
        for slab, member, node in self._labels.contains:
            if ((slab == other) & (member == one)).any():
                return Tie(node, other, "row")
            if ((slab == one) & (member == other)).any():
                return Tie(node, other, "part")
        raise LookupError(f"no statement ties label {one} to {other}")


def _pairs(statements: list[tuple[np.ndarray, np.ndarray, str]]) -> tuple[np.ndarray, np.ndarray]:
    none = np.zeros(0, int)
    first = np.concatenate([none, *(statement[0] for statement in statements)])
    return first, np.concatenate([none, *(statement[1] for statement in statements)])
