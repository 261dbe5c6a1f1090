"""Labels, and what operators say about them.

A *label* is an integer that stands for one removable index: position 5 along the output axis of a convolution's weight,
one padded channel, one head. Running a graph on labels (see `interpret.py`) collects statements about them here; nothing
is solved until the whole graph has been seen.

The statements:

* `relate` two aligned label arrays: equal labels stay or leave together; where one array is coarser (one of its labels
  faces several of the other), the coarse label *contains* the fine ones: they leave with it.
* `project` a track that varies along several axes onto some of them: a *slab* label for every row, containing the labels
  of that row. A head is the slab of its channels.
* `hold` labels that cannot leave, with the reason.
* `lock` labels that cannot leave alone, only with a slab that contains them.
* `grid`: labels that a reshape laid out in rows, which must stay rectangular.
* `cut`: labels along a part of an axis, of which at least one must stay.

Label 0 is neutral: never removed, never related to anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from prunus.structure.hashing import distinct, hashed, unique_pairs

Relation = Literal["same", "contains", "inside", "crossed"]


@dataclass(frozen=True)
class Reason:
    """Why labels are held: a sentence, and the node of the graph that says so."""

    text: str
    node: str | None = None


@dataclass(frozen=True)
class Place:
    """Labels `start ... start+size-1` index `axis` of the tensor behind a placeholder."""

    placeholder: str
    axis: int
    start: int
    size: int


@dataclass(frozen=True)
class Grid:
    """Labels laid out in rows by a reshape, outermost axis first, innermost (fastest varying) last.

    What is left must be rectangular: all rows keep equally many, and where it is `separable` the same columns.
    """

    labels: np.ndarray
    node: str
    separable: bool = False


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one contraction: `constant` times the kept positions of every cluster of axes."""

    node: str
    constant: int
    clusters: tuple[tuple[np.ndarray, ...], ...]


def varying(track: Tensor) -> tuple[int, ...]:
    """Axes along which the label changes: those of size > 1 that the strides do not skip."""
    return tuple(
        i
        for i, (size, stride) in enumerate(zip(track.shape, track.stride(), strict=True))
        if size > 1 and stride
    )


def compact(track: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The track restricted to `axes`, which must include all varying ones."""
    index = tuple(slice(None) if i in axes else 0 for i in range(track.dim()))
    return track[index]


def along(labels: Tensor, axes: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    """Spread compact labels (sizes of `axes`, in order) over `shape`, stride 0 elsewhere."""
    view = [1] * len(shape)
    for i, axis in enumerate(axes):
        view[axis] = labels.shape[i]
    return labels.reshape(view).expand(shape)


def tighten(track: Tensor) -> Tensor:
    """Give stride 0 to axes along which a materialized track turns out to be constant."""
    for axis in varying(track):
        first = track.narrow(axis, 0, 1)
        if torch.equal(track, first.expand_as(track)):
            track = first.expand(track.shape)
    return track


def outer_to_inner(labels: Tensor) -> list[int]:
    """Order the axes of a compact label array from outermost to innermost, by how far labels reach along each."""
    jumps = []
    for axis in range(labels.dim()):
        line = labels
        for other in range(labels.dim() - 1, -1, -1):
            if other != axis:
                line = line.select(other, 0)
        jumps.append(abs(int(line[-1]) - int(line[0])))
    return sorted(range(labels.dim()), key=lambda axis: (-jumps[axis], axis))


def rows_of(
    labels: Tensor, axes: tuple[int, ...], keep: tuple[int, ...]
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Compact labels over `axes` as one row per position along `keep`, and the sizes along `keep`."""
    kept = [axes.index(axis) for axis in keep]
    dropped = [i for i in range(len(axes)) if i not in kept]
    sizes = tuple(labels.shape[i] for i in kept)
    return labels.permute(*kept, *dropped).reshape(int(np.prod(sizes)), -1).numpy(), sizes


class Labels:
    """Everything that a run of the graph on labels has said so far."""

    checks = False  # whether relations are only checked, not stated

    def __init__(self) -> None:
        self.count = 1  # label 0 is neutral
        self.places: list[Place] = []
        self.edges: list[tuple[np.ndarray, np.ndarray, str]] = []
        self.contains: list[tuple[np.ndarray, np.ndarray, str]] = []  # slab, member
        self.locks: list[np.ndarray] = []
        self.locks_within: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # slab, member that cannot leave without it
        self.bound: list[
            tuple[np.ndarray, np.ndarray]
        ] = []  # slab, member that no other slab takes without it
        self.holds: list[tuple[np.ndarray, Reason]] = []
        self.produced: list[np.ndarray] = []
        self.features: list[np.ndarray] = []
        self.grids: list[Grid] = []
        self.cuts: list[tuple[np.ndarray, str]] = []
        self.works: list[Work] = []
        self.unknown: dict[str, str] = {}  # node -> operator without a rule
        # what a second run needs to find the same labels again: the node being visited, and what was made there
        self.node = ""
        self.made: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self.slabs_made: dict[str, list[tuple[set[int], np.ndarray, np.ndarray]]] = {}

    # ------------------------------------------------------------------ making labels
    def fresh(self, size: int, key: int = -1) -> Tensor:
        """`size` new labels, consecutive; `key` (an axis) tells apart those of one node."""
        self.made.setdefault((self.node, key), []).append((self.count, size))
        return self._number(size)

    def _number(self, size: int) -> Tensor:
        labels = torch.arange(self.count, self.count + size)
        self.count += size
        return labels

    def place(self, placeholder: str, axis: int, size: int) -> Tensor:
        """New labels for one axis of a parameter or buffer."""
        self.places.append(Place(placeholder, axis, self.count, size))
        return self._number(size)

    # ------------------------------------------------------------------ statements
    def hold(self, track: Tensor, text: str, node: str) -> None:
        labels = distinct(compact(track, varying(track)).numpy())
        self.holds.append((labels[labels > 0], Reason(text, node)))

    def lock(self, labels: np.ndarray) -> None:
        self.locks.append(labels[labels > 0])

    def produce(self, track: Tensor) -> None:
        """Some contraction makes these indices: they may be removed."""
        self.produced.append(distinct(compact(track, varying(track)).numpy()))

    def feature(self, track: Tensor) -> None:
        """A layer sums over these indices: they may be removed, even where a table makes them and no layer."""
        self.features.append(distinct(compact(track, varying(track)).numpy()))

    def unite(self, a: np.ndarray, b: np.ndarray, node: str) -> None:
        self.edges.append((a, b, node))

    def match(self, a: np.ndarray, b: np.ndarray, node: str) -> bool:
        """Unite flat label arrays that both ascend, as labels of one axis mostly do; False where they do not."""
        if not (a[0] > 0 and b[0] > 0 and (a[1:] > a[:-1]).all() and (b[1:] > b[:-1]).all()):
            return False
        if a[0] != b[0] or not np.array_equal(a, b):
            self.unite(a, b, node)
        return True

    def relate(self, a: np.ndarray, b: np.ndarray, node: str, lock: bool = True) -> Relation:
        """State that aligned flat label arrays describe the same positions; returns how `a` relates to `b`.

        With `lock`, labels that a coarser one contains cannot leave alone.
        """
        used = (a > 0) & (b > 0)
        if not used.all():
            a, b = a[used], b[used]
        if not len(a) or a is b or np.array_equal(a, b):
            return "same"
        if (np.diff(a) > 0).all() and (np.diff(b) > 0).all():
            self.unite(a, b, node)
            return "same"
        pairs = np.unique(np.stack([a, b], 1), axis=0) if len(a) < 64 else unique_pairs(a, b, self.count)
        many_a, many_b = len(distinct(pairs[:, 0])), len(distinct(pairs[:, 1]))
        if len(pairs) == many_a == many_b:
            self.unite(pairs[:, 0], pairs[:, 1], node)
            return "same"
        if len(pairs) == many_b:
            self.contains.append((pairs[:, 0], pairs[:, 1], node))
            if lock:
                self.locks_within.append((pairs[:, 0], pairs[:, 1]))
            return "contains"
        if len(pairs) == many_a:
            self.contains.append((pairs[:, 1], pairs[:, 0], node))
            if lock:
                self.locks_within.append((pairs[:, 1], pairs[:, 0]))
            return "inside"
        return "crossed"

    def project(self, track: Tensor, keep: tuple[int, ...], node: str, lock: bool = False) -> Tensor:
        """One slab label per position along the axes `keep`, containing the labels met along the others.

        If what shrinks when single labels leave (the innermost axis) is among the axes kept, the alignment along it matters
        to others: then single labels are locked, and slabs are made along the other axes too.
        """
        axes = varying(track)
        keep = tuple(axis for axis in axes if axis in keep)
        if keep == axes:
            return track
        labels = compact(track, axes)
        order = outer_to_inner(labels)
        slabs = self._slabs(labels, axes, keep, node)
        if lock or axes[order[-1]] in keep:
            self.lock(distinct(labels.numpy()))
            self._slabs(labels, axes, tuple(axis for axis in axes if axis not in keep), node)
        out = along(slabs, keep, tuple(track.shape))
        if len(keep) > 1:
            self.grid(out, node)
        return out

    def _slabs(self, labels: Tensor, axes: tuple[int, ...], keep: tuple[int, ...], node: str) -> Tensor:
        """Slab labels of compact `labels` over `axes`, for each position along `keep`."""
        rows, sizes = rows_of(labels, axes, keep)
        if (rows == rows[:, :1]).all():
            return torch.from_numpy(rows[:, 0].copy()).reshape(sizes)
        keys = hashed(rows).sum(1, dtype=np.uint64)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        appearance = np.argsort(np.argsort(first))  # number slabs in the order in which they appear
        slabs = self._number(len(first)).numpy()
        members = rows[np.sort(first)]
        owner = np.repeat(slabs, members.shape[1])
        flat = members.reshape(-1)
        self.contains.append((owner[flat > 0], flat[flat > 0], node))
        self.slabs_made.setdefault(self.node, []).append((set(keep), flat, owner))
        return torch.from_numpy(slabs[appearance[inverse.reshape(-1)]]).reshape(sizes)

    def grid(self, track: Tensor, node: str, separable: bool = False) -> None:
        """The labels vary along several axes of one value: what is left of them must stay rectangular."""
        axes = varying(track)
        if len(axes) < 2:
            return
        labels = compact(track, axes)
        self.grids.append(Grid(labels.permute(outer_to_inner(labels)).numpy(), node, separable))

    def cut(self, labels: np.ndarray, node: str) -> None:
        """An axis has these labels only: one at least must stay."""
        self.cuts.append((labels, node))

    def work(self, node: str, tracks: list[Tensor], shape: tuple[int, ...], constant: int = 1) -> None:
        """Count `constant * prod(shape)` multiply-accumulates, of which removed positions are not done."""
        clusters: list[tuple[set[int], list[Tensor]]] = []
        for track in tracks:
            axes, members = set(varying(track)), [track]
            if not axes:
                continue
            for cluster in [c for c in clusters if c[0] & axes]:
                axes |= cluster[0]
                members = cluster[1] + members
                clusters.remove(cluster)
            clusters.append((axes, members))
        covered = set().union(*(c[0] for c in clusters)) if clusters else set()
        for axis, size in enumerate(shape):
            if axis not in covered:
                constant *= size
        arrays = tuple(
            tuple(compact(t, tuple(sorted(axes))).numpy() for t in members) for axes, members in clusters
        )
        self.works.append(Work(node, constant, arrays))
