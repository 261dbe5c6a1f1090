"""Which positions of a value stay, and what shape they make."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.errors import SurgeryError
from prunus.structure.labels import compact, outer_to_inner, varying
from prunus.structure.value import Value


@dataclass(frozen=True)
class Kept:
    """What stays of one value.

    Attributes:
        shape: the new shape.
        before: the old shape.
        lines: per axis on which positions stay or go independently of the other axes, the (old size,) mask of those that
            stay; None where nothing goes, or where what stays differs from row to row.
        grids: (axes, mask, order) for clusters of axes that are only jointly regular; `order` lists positions in `axes` from
            the outermost to the innermost.
    """

    shape: tuple[int, ...]
    before: tuple[int, ...]
    lines: tuple[Tensor | None, ...]
    grids: tuple[tuple[tuple[int, ...], Tensor, tuple[int, ...]], ...] = ()

    @property
    def changed(self) -> bool:
        return self.shape != self.before

    def line(self, axis: int) -> Tensor | None:
        """Mask of what stays along an axis, in the first row that stays where rows differ; None where nothing goes."""
        axis %= len(self.shape)
        for axes, mask, order in self.grids:
            if axis not in axes:
                continue
            nested = mask.permute(order)
            for position in order:
                alive = nested.reshape(len(nested), -1).any(1)
                if axes[position] == axis:
                    return alive
                nested = nested[int(torch.nonzero(alive)[0])]
        return self.lines[axis]


def kept(value: Value, keep: Tensor, where: str) -> Kept:
    """What stays of `value` when label `i` stays iff `keep[i]`.

    Raises:
        SurgeryError: what stays is not rectangular, or nothing stays along an axis.
    """
    shape = list(value.shape)
    lines: list[Tensor | None] = [None] * len(shape)
    clusters: list[tuple[tuple[int, ...], Tensor, Tensor]] = []
    for track in value.tracks:
        axes = varying(track)
        if not axes:
            continue
        labels = compact(track, axes)
        mask = keep[labels]
        if bool(mask.all()):
            continue
        if len(axes) == 1:
            line = lines[axes[0]]
            lines[axes[0]] = mask if line is None else line & mask
        else:
            clusters.append((axes, labels, mask))
    for axis, line in enumerate(lines):
        if line is not None:
            shape[axis] = int(line.sum())
    grids = []
    for axes, labels, mask in _joined(clusters):
        for i, axis in enumerate(axes):
            line = lines[axis]
            if line is not None:
                view = [1] * len(axes)
                view[i] = -1
                mask = mask & line.view(view)
        order = outer_to_inner(labels)
        sizes = _rectangle(mask, order, where)
        for axis, size in zip(axes, sizes, strict=True):
            shape[axis] = size
        flat = _separable(mask, sizes)
        if flat is None:
            grids.append((axes, mask, tuple(order)))
            for axis in axes:
                lines[axis] = None
        else:
            for axis, line in zip(axes, flat, strict=True):
                lines[axis] = line if not bool(line.all()) else None
    if 0 in shape and 0 not in value.shape:
        raise SurgeryError(
            f"nothing is left of axis {shape.index(0)} of {where} (shape {tuple(value.shape)}): keep at least one unit there."
        )
    return Kept(tuple(shape), tuple(value.shape), tuple(lines), tuple(grids))


def _joined(
    clusters: list[tuple[tuple[int, ...], Tensor, Tensor]],
) -> list[tuple[tuple[int, ...], Tensor, Tensor]]:
    """Merge clusters that share axes."""
    done: list[tuple[tuple[int, ...], Tensor, Tensor]] = []
    for axes, labels, mask in clusters:
        for other in [c for c in done if set(c[0]) & set(axes)]:
            done.remove(other)
            union = tuple(sorted({*axes, *other[0]}))
            wide = [
                _align(t, a, union)
                for t, a in ((labels, axes), (other[1], other[0]), (mask, axes), (other[2], other[0]))
            ]
            first, second, one, two = wide
            labels = first if len(axes) >= len(other[0]) else second
            labels, mask, axes = (
                labels.expand(torch.broadcast_shapes(first.shape, second.shape)),
                one & two,
                union,
            )
        done.append((axes, labels, mask))
    return done


def _align(t: Tensor, axes: tuple[int, ...], union: tuple[int, ...]) -> Tensor:
    view = [1] * len(union)
    for i, axis in enumerate(axes):
        view[union.index(axis)] = t.shape[i]
    return t.reshape(view)


def _rectangle(mask: Tensor, order: list[int], where: str) -> list[int]:
    """Sizes of the rectangle that the kept positions make, outermost axis first."""
    sizes = [0] * mask.dim()
    alive = mask.permute(order)
    total = int(mask.sum())
    rows = alive.reshape(1, *alive.shape)
    for axis in order[:-1]:
        present = rows.flatten(2).any(2) if rows.dim() > 2 else rows
        counts = present.sum(1)
        counts = counts[counts > 0]
        if len(counts) and bool((counts != counts[0]).any()):
            raise SurgeryError(
                f"rows of {where} keep different numbers of channels ({sorted(set(counts.tolist()))}): they must keep equally many."
            )
        sizes[axis] = int(counts[0]) if len(counts) else 0
        rows = rows.reshape(-1, *rows.shape[2:])
        rows = rows[rows.reshape(len(rows), -1).any(1)]
    counts = rows.sum(1)
    if len(counts) and bool((counts != counts[0]).any()):
        raise SurgeryError(
            f"rows of {where} keep different numbers of channels ({sorted(set(counts.tolist()))}): they must keep equally many."
        )
    sizes[order[-1]] = int(counts[0]) if len(counts) else 0
    if math.prod(sizes) != total:
        raise SurgeryError(
            f"what is kept of {where} does not make a rectangle: {total} positions, sizes {sizes}."
        )
    return sizes


def _separable(mask: Tensor, sizes: list[int]) -> list[Tensor] | None:
    """The mask as an outer product of lines, if it is one."""
    lines = [mask.movedim(axis, 0).flatten(1).any(1) for axis in range(mask.dim())]
    return lines if [int(line.sum()) for line in lines] == sizes else None


def shaped(meta: Any, what: Any) -> Any:
    """Tensors without content in the shapes of what stays: concrete sizes, as the labels have them."""
    if isinstance(meta, (tuple, list)):
        return type(meta)(shaped(m, w) for m, w in zip(meta, what, strict=False))
    if not isinstance(what, Kept) or not isinstance(meta, Tensor):
        return meta
    return torch.empty(what.shape, dtype=meta.dtype, device="meta")
