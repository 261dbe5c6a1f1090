"""The second run on labels: does what arrives at every operator of the small graph fit together?

The small graph is run on the labels that are left. Wherever two values meet, their labels must describe the same positions
as in the original: a difference is found here, before any number is computed. Where a weight meets labels in another order
(rows that kept different channels and were transposed since), the order in which they arrive says which original index
belongs at each position: the weight is gathered in that order. Where labels differ and no order explains it, the second run
cannot tell (labels that only a third one ties together have no relation of their own): numbers must, so the place is noted
and verification is not optional.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from prunus.capture import Captured, size_of
from prunus.capture.garbage import uncollected
from prunus.errors import SurgeryError
from prunus.structure import Structure, Value
from prunus.structure.interpret import Run, where
from prunus.structure.labels import Labels, Relation, along, compact, rows_of, varying
from prunus.surgery.slice import slice_graph

PASSES = 6


class Replay(Labels):
    """Answers the rules of a second run: labels are those of the first, relations are checked instead of stated."""

    checks = True

    def __init__(
        self, structure: Structure, keep: np.ndarray, orders: dict[tuple[str, int], np.ndarray]
    ) -> None:
        super().__init__()
        self.first, self.keep, self.orders = structure.labels, keep, orders
        self.count = structure.labels.count
        self.unit = structure.units.of_label
        related = structure.units.control.matrix()
        self.related = related + related.T
        self.spans = {(p.placeholder, p.axis): p for p in structure.labels.places}
        self.starts = np.array([p.start for p in structure.labels.places])
        self.misfits: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.taken: dict[tuple[str, int], int] = {}

    def place(self, placeholder: str, axis: int, size: int) -> Tensor:
        """Labels of a parameter's axis that are left, in the order in which the small parameter holds them."""
        if (placeholder, axis) in self.orders:
            return torch.from_numpy(self.orders[placeholder, axis])
        place = self.spans.get((placeholder, axis))
        if place is None:  # a constant that surgery made
            return torch.zeros(size, dtype=torch.long)
        labels = np.arange(place.start, place.start + place.size)
        return torch.from_numpy(labels[self.keep[labels]])

    def fresh(self, size: int, key: int = -1) -> Tensor:
        """What is left of the labels that the first run made at this node."""
        blocks = self.first.made.get((self.node, key), [])
        for i in range(self.taken.get((self.node, key), 0), len(blocks)):
            start, count = blocks[i]
            labels = np.arange(start, start + count)
            labels = labels[self.keep[labels]]
            if len(labels) == size:
                self.taken[self.node, key] = i + 1
                return torch.from_numpy(labels)
        return torch.zeros(size, dtype=torch.long)

    def match(self, a: np.ndarray, b: np.ndarray, node: str) -> bool:
        """Whether they are the same units; what differs is looked at more closely."""
        return np.array_equal(self.unit[a], self.unit[b])

    def relate(self, a: np.ndarray, b: np.ndarray, node: str, lock: bool = True) -> Relation:
        """Whether aligned labels belong together: the same unit, or one contains the other."""
        used = (a > 0) & (b > 0)
        x, y = self.unit[a[used]], self.unit[b[used]]
        if np.array_equal(x, y):
            return "same"
        fits = np.asarray(self.related[x, y]).reshape(-1) > 0
        return "same" if fits.all() else "crossed"

    def unite(self, a: np.ndarray, b: np.ndarray, node: str) -> None:
        """Tracks that no other explains: in the first run they were united, so they must be the same units now."""
        if not np.array_equal(self.unit[a], self.unit[b]):
            self.misfits.append((a, b, node))

    def project(self, track: Tensor, keep: tuple[int, ...], node: str, lock: bool = False) -> Tensor:
        """The slabs that the first run made of these rows."""
        axes = varying(track)
        asked, keep = set(keep), tuple(axis for axis in axes if axis in keep)
        rows, sizes = rows_of(compact(track, axes), axes, keep)
        lead = rows.max(1)
        made = [block for block in self.first.slabs_made.get(self.node, []) if block[0] <= asked]
        for kept, members, owner in sorted(made, key=lambda block: -len(block[0])):
            if kept & set(axes) != set(keep):  # axes of which one position is left vary no more
                continue
            order = np.argsort(members, kind="stable")
            at = np.searchsorted(members[order], lead)
            at = np.minimum(at, len(members) - 1)
            if (members[order][at] == lead).all():
                return along(torch.from_numpy(owner[order][at]).reshape(sizes), keep, tuple(track.shape))
        if (rows == rows[:, :1]).all():
            return along(torch.from_numpy(rows[:, 0].copy()).reshape(sizes), keep, tuple(track.shape))
        return along(torch.zeros(sizes, dtype=torch.long), keep, tuple(track.shape))

    def hold(self, track: Tensor, text: str, node: str) -> None:
        """Nothing to say: what the first run held has stayed."""

    def lock(self, labels: np.ndarray) -> None:
        """Nothing to say."""

    def produce(self, track: Tensor) -> None:
        """Nothing to say."""

    def grid(self, track: Tensor, node: str, separable: bool = False) -> None:
        """Nothing to say: rectangles were checked when constants were rewritten."""

    def cut(self, labels: np.ndarray, node: str) -> None:
        """Nothing to say."""

    def work(self, node: str, tracks: list[Tensor], shape: tuple[int, ...], constant: int = 1) -> None:
        """Nothing to say."""


@uncollected
def cut(structure: Structure, keep: np.ndarray) -> Captured:
    """The captured model with only the labels in `keep` (labels,): sliced, rewritten, and checked by a second run.

    Raises:
        SurgeryError: what is kept makes no rectangle, or values meet that do not fit.
    """
    small = slice_graph(structure, keep)
    return replay(structure, small, keep) if _may_reorder(structure, keep) else small


def _may_reorder(structure: Structure, keep: np.ndarray) -> bool:
    """Whether rows of a grid keep different columns. Where none do, slicing leaves everything in order wherever it goes."""
    for grid in structure.units.grids:
        stays = keep[grid.labels].reshape(-1, grid.labels.shape[-1])
        stays = stays[stays.any(1)]
        if len(stays) and (stays != stays[:1]).any():
            return True
    return False


def replay(structure: Structure, small: Captured, keep: np.ndarray) -> Captured:
    """Run the small graph on labels; gather weights that meet labels in another order.

    Raises:
        SurgeryError: a shape does not fit its labels.
    """
    orders: dict[tuple[str, int], np.ndarray] = {}
    unsettled: list[str] = []
    for _ in range(PASSES):
        labels = Replay(structure, keep, orders)
        _run(small, labels)
        if not labels.misfits:
            return small
        unsettled = [node for _, _, node in labels.misfits]
        gathered = _gathered(small, labels, orders)
        if gathered is None:
            break
        small = gathered
    return dataclasses.replace(small, unsettled=tuple(dict.fromkeys(unsettled)))


def _run(small: Captured, labels: Replay) -> None:
    with torch.no_grad():
        run = Run(small, labels).run()
    for node, value in run.values.items():
        if isinstance(value, Value) and value.tracks and tuple(value.shape) != size_of(node):
            raise SurgeryError(
                f"{node.name} ({node.target}, {where(node)}) has shape {size_of(node)}, "
                f"but the labels that are left make {tuple(value.shape)}"
            )


def _gathered(small: Captured, labels: Replay, orders: dict[tuple[str, int], np.ndarray]) -> Captured | None:
    """Reorder the parameters whose labels face others, each axis once per pass; None where no order explains anything."""
    tensors, done = dict(small.tensors), set()
    for a, b, _ in labels.misfits:
        for mine, other in ((b, a), (a, b)):
            place = labels.first.places[int(np.searchsorted(labels.starts, mine[0], side="right")) - 1]
            key = (place.placeholder, place.axis)
            if key in done:
                break
            inside = (mine >= place.start) & (mine < place.start + place.size)
            order = _order(labels, mine, other) if inside.all() else None
            if order is None:
                continue
            now = labels.place(place.placeholder, place.axis, 0).numpy()
            if len(now) != len(order) or not np.array_equal(np.sort(now), np.sort(order)):
                continue
            rank = np.argsort(now)
            index = torch.from_numpy(rank[np.searchsorted(now[rank], order)])
            tensors[place.placeholder] = _select(tensors[place.placeholder], place.axis, index)
            orders[key] = order
            done.add(key)
            break
    return dataclasses.replace(small, tensors=tensors) if done else None


def _order(labels: Replay, mine: np.ndarray, other: np.ndarray) -> np.ndarray | None:
    """`mine` reordered so that its units face those of `other`; equal units in their order of appearance."""
    x, y = labels.unit[mine], labels.unit[other]
    first, second = np.argsort(x, kind="stable"), np.argsort(y, kind="stable")
    if not np.array_equal(x[first], y[second]):
        return None
    order = np.empty_like(mine)
    order[second] = mine[first]
    return order


def _select(tensor: Tensor, axis: int, index: Tensor) -> Tensor:
    moved = tensor.detach().index_select(axis, index.to(tensor.device))
    return (
        torch.nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else moved
    )
