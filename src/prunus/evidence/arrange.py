"""Bring activations of any layout into one: channels first, then samples, then what is left as the map."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, fx

from prunus.capture.sizes import is_symbolic
from prunus.evidence.places import Place, Spot

__all__ = ["Arrangement", "Blocks", "arrangement", "blocks", "split_labels"]

_WIDEST = 4096  # positions that are told apart: sums of all their products take 134 MB


class Arrangement:
    """How the values of one node become (positions, samples, *map).

    Attributes:
        units: (positions,) the unit at each position.
    """

    def __init__(self, node: fx.Node, spot: Spot, runs: bool = True) -> None:
        """With `runs`, units that stand in runs along an axis have a map there, of which all places count alike."""
        value = node.meta["val"]
        self._splits: list[
            tuple[int, int, bool]
        ] = []  # axis, number of labels along it, labels are the outer part
        labels = spot.units
        for i, axis in reversed(list(enumerate(spot.axes))):
            merged = is_symbolic(value.shape[axis])
            split = split_labels(np.moveaxis(labels, i, 0), merged) if runs or merged else None
            if split is not None:
                count, outer = split
                self._splits.append((axis, count, outer))
                taken = np.arange(count) * (labels.shape[i] // count if outer else 1)
                labels = labels.take(taken, i)
        axes = {axis: i for i, axis in enumerate(spot.axes)}
        split_axes = {axis: outer for axis, _, outer in self._splits}
        order, rest, sample = [0] * len(axes), [], None
        position = 0
        for axis, size in enumerate(value.shape):
            if axis in split_axes:
                outer = split_axes[axis]
                order[axes[axis]] = position + (0 if outer else 1)
                other = position + (1 if outer else 0)
                rest.append(other)
                sample = other if sample is None and is_symbolic(size) else sample
                position += 2
                continue
            if axis in axes:
                order[axes[axis]] = position
            else:
                rest.append(position)
                sample = position if sample is None and is_symbolic(size) else sample
            position += 1
        sample = rest[0] if sample is None and rest else sample
        self.has_samples = sample is not None
        rest = [axis for axis in rest if axis != sample]
        self.rows = labels  # of the axes with labels, in their order
        self._order = (*order, *(() if sample is None else (sample,)), *rest)
        flat = labels.reshape(-1)
        self._taken = None if (flat >= 0).all() else torch.from_numpy(np.flatnonzero(flat >= 0))
        self.units = torch.from_numpy(flat[flat >= 0].copy())

    def with_axes(self, x: Tensor) -> Tensor:
        """(sizes of the axes with labels..., samples, *map)."""
        for axis, count, outer in self._splits:  # later axes first
            shape = (count, -1) if outer else (-1, count)
            x = x.reshape(*x.shape[:axis], *shape, *x.shape[axis + 1 :])
        x = x.permute(self._order)
        return x if self.has_samples else x.unsqueeze(self.rows.ndim)

    def __call__(self, x: Tensor) -> Tensor:
        """(positions, samples, *map) of the positions that have a unit."""
        x = self.with_axes(x)
        labelled = self.rows.ndim
        x = x.reshape(math.prod(x.shape[:labelled]), *x.shape[labelled:])
        return x if self._taken is None else x.index_select(0, self._taken.to(x.device))


class Blocks:
    """An arrangement whose positions are in the order of their units, with as many for each.

    Attributes:
        width: positions of a unit.
    """

    def __init__(self, arranged: Arrangement, size: int) -> None:
        self._arranged = arranged
        self.width = max(1, len(arranged.units) // max(1, size))
        ordered = torch.sort(arranged.units, stable=True)
        self._order = None if torch.equal(ordered.values, arranged.units) else ordered.indices

    def __call__(self, x: Tensor) -> Tensor:
        """(units * width, samples, *map)."""
        x = self._arranged(x)  # a view, if it can be: transposed copies take as long as a layer
        return x if self._order is None else x.index_select(0, self._order.to(x.device))


def split_labels(labels: np.ndarray, merged: bool) -> tuple[int, bool] | None:
    """Along axis 0: how many labels take turns (with the batch outside), or stand in runs (with the map inside).

    Args:
        labels: (n, ...).
        merged: the batch is part of this axis.
    """
    n = len(labels)
    changes = np.flatnonzero((labels[1:] != labels[:-1]).reshape(n - 1, -1).any(1)) + 1
    run = math.gcd(n, *changes.tolist()) if len(changes) else n
    if 1 < run < n and len(changes) == n // run - 1:
        return n // run, True
    if merged:
        for period in range(1, n):
            if (
                n % period == 0
                and (labels == np.tile(labels[:period], (n // period, *(1,) * (labels.ndim - 1)))).all()
            ):
                return period, False
    return None


def arrangement(place: Place) -> Arrangement:
    """How the value of a place becomes (positions, samples, *map)."""
    return Arrangement(place.node, place.spot)


def blocks(place: Place, size: int) -> Blocks | Arrangement:
    """Positions by unit, where all units have as many and there are not too many; else as `arrangement`."""
    arranged = Arrangement(place.node, place.spot, runs=False)
    counts = torch.bincount(arranged.units, minlength=size)
    alike = bool((counts == counts[0]).all()) and int(counts[0]) > 0
    few = len(arranged.units) <= max(_WIDEST, size)
    return Blocks(arranged, size) if alike and few else arrangement(place)
