"""Where two values meet along common axes: compare their tracks, relate what matches, hold what faces something solid."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from prunus.structure.hashing import distinct
from prunus.structure.labels import Labels, compact, varying


class _Side:
    """A track of one operand, and the axes along which it has found partners."""

    def __init__(self, track: Tensor, shared: tuple[int, ...]) -> None:
        self.track = track
        self.axes = varying(track)
        self.shared = tuple(axis for axis in self.axes if axis in shared)
        self.covered: set[int] = set()
        self.dropped = False
        self.open = True
        self.crossed: list[_Side] = []


def meet(
    labels: Labels,
    node: str,
    first: list[Tensor],
    second: list[Tensor],
    first_real: tuple[bool, ...],
    second_real: tuple[bool, ...],
    reason: str,
) -> list[Tensor]:
    """Relate the tracks of two operands that are aligned over one joint shape.

    Args:
        labels: where statements go.
        node: name of the node at which they meet.
        first, second: tracks, each expanded to the joint shape.
        first_real, second_real: per joint axis, whether that operand really has more than one index there (rather than
            being broadcast).
        reason: why a track is held that faces an operand without labels, for the report.

    Returns:
        The tracks of the result: without those that say the same as, or less than, another.
    """
    shared = tuple(i for i in range(len(first_real)) if first_real[i] and second_real[i])
    if not shared or not (first or second):
        return [*first, *second]
    if len(first) == len(second) == 1 and _agree(labels, node, first[0], second[0], shared):
        return first
    left = [_Side(track, shared) for track in first]
    right = [_Side(track, shared) for track in second]
    for a in left:
        for b in right:
            if set(a.shared) & set(b.shared):
                _compare(labels, node, a, b)
    for one, other in ((left, right), (right, left)):
        _bind(labels, node, one, other)
    for side in (*left, *right):
        side.open = bool(set(side.shared) - side.covered)
    for side in (*left, *right):
        _settle(labels, node, side, reason)
    return [side.track for side in (*left, *right) if not side.dropped]


def _agree(labels: Labels, node: str, a: Tensor, b: Tensor, shared: tuple[int, ...]) -> bool:
    """The usual case, ahead of all others: both vary along one and the same axis, and match there."""
    axes = varying(a)
    if len(axes) != 1 or axes[0] not in shared or axes != varying(b):
        return False
    return labels.match(compact(a, axes).numpy(), compact(b, axes).numpy(), node)


def _compare(labels: Labels, node: str, a: _Side, b: _Side) -> None:
    common = tuple(axis for axis in a.shared if axis in b.shared)
    left = labels.project(a.track, common, node)
    right = labels.project(b.track, common, node)
    # what another track explains can leave with that one, and need not wait for this one
    lock = not (set(common) <= a.covered or set(common) <= b.covered)
    first, second = (compact(side, common).reshape(-1).numpy() for side in (left, right))
    relation = labels.relate(first, second, node, lock)
    if relation == "crossed":
        a.crossed.append(b)
        return
    a.covered |= set(common)
    b.covered |= set(common)
    if relation in ("same", "inside") and b.axes == common:
        b.dropped = True
    elif relation in ("same", "contains") and a.axes == common:
        a.dropped = True


def _bind(labels: Labels, node: str, fine: list[_Side], coarse: list[_Side]) -> None:
    """Which of the tracks that repeat the labels of a finer one take its indices along.

    Indices that two tracks together tell apart, as rows and columns do, leave with one of the rows or columns only. What a
    single track repeats, as a tensor that is joined to itself does, leaves wherever it is repeated, or nowhere.
    """
    for side in fine:
        axes = side.shared
        facing = [other for other in coarse if other.axes == axes == side.axes]
        if not facing or labels.checks:
            continue
        mine = compact(side.track, axes).reshape(-1).numpy()
        others = [compact(other.track, axes).reshape(-1).numpy() for other in facing]
        told = [other for other in others if len(np.unique(other[other > 0])) < len(mine)]
        if len(told) == 1 and sum(bool(set(other.shared) & set(axes)) for other in coarse) == 1:
            used = (mine > 0) & (told[0] > 0)
            _join(labels, told[0][used], mine[used], node)
        if len(told) < 2 or len(np.unique(np.stack(told), axis=1).T) < len(mine):
            continue
        for other in told:
            used = (mine > 0) & (other > 0)
            labels.bound.append((other[used], mine[used]))


def _join(labels: Labels, coarse: np.ndarray, fine: np.ndarray, node: str) -> None:
    """Unite flat aligned labels where each coarse one repeats for several fine ones, if that is how they relate."""
    pairs = np.unique(np.stack([coarse, fine]), axis=1)
    if pairs.shape[1] == len(distinct(pairs[1])) > len(distinct(pairs[0])):
        labels.unite(pairs[0], pairs[1], node)


def _settle(labels: Labels, node: str, side: _Side, reason: str) -> None:
    open_axes = tuple(axis for axis in side.shared if axis not in side.covered)
    if not open_axes:
        return
    for other in side.crossed:
        if not (other.open or labels.checks):
            continue  # another track explains it: what is left of this one stays
        # neither explains the other, and nobody else does: they can only leave together
        common = tuple(axis for axis in side.shared if axis in other.shared)
        left = compact(labels.project(side.track, common, node), common).reshape(-1).numpy()
        right = compact(labels.project(other.track, common, node), common).reshape(-1).numpy()
        used = np.flatnonzero((left > 0) & (right > 0))
        labels.unite(left[used], right[used], node)
        side.covered |= set(common)
        other.covered |= set(common)
    open_axes = tuple(axis for axis in side.shared if axis not in side.covered)
    if open_axes:
        labels.hold(labels.project(side.track, open_axes, node), reason, node)
        # what cannot leave is as good as unlabelled from here on
        side.dropped |= open_axes == side.axes
