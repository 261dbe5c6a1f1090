"""Patches as columns and back: every channel makes as many rows as the kernel has positions, and those stay."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, fx

from prunus.structure.labels import along, compact, tighten, varying
from prunus.structure.layout import in_rows
from prunus.structure.rules.reduction import spread
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule("im2col")
def im2col(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """(N, C, H, W) to (N, C * taps, positions): all taps of a channel carry its label."""
    shape, rank = run.shape(node), len(a.self.shape)
    axis, taps = rank - 3, math.prod(a.kernel_size)
    kept = run.hold(node, a.self, {rank - 2, rank - 1}, "is a position in space that is cut into patches")
    tracks = []
    for track in kept:
        axes = varying(track)
        labels = compact(track, axes)
        if axis in axes:
            labels = labels.repeat_interleave(taps, axes.index(axis))
        tracks.append(along(labels, axes, shape))
    return Value(shape, tuple(tracks))


@rule("col2im")
def col2im(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """(N, C * taps, positions) to (N, C, H, W): the taps of a channel are summed where they meet, and leave together."""
    shape = run.shape(node)
    axis, taps = len(shape) - 3, math.prod(a.kernel_size)
    before = a.self.shape
    wide = (*before[:axis], before[axis] // taps, taps, *before[axis + 1 :])
    rows = Value(wide, tuple(tighten(in_rows(run.labels, t, wide, node.name)) for t in a.self.tracks))
    reason = "is a position of a patch that is put back in its place"
    kept = [spread(track, shape) for track in run.hold(node, rows, {axis + 1, axis + 2}, reason)]
    return Value(shape, tuple(_finest(run, node, kept, axis)))


def _finest(run: Any, node: fx.Node, tracks: list[Tensor], axis: int) -> list[Tensor]:
    """Without tracks that are coarser than another: a head leaves with its channels, and those say more."""
    lines = [compact(t, (axis,)).numpy() if varying(t) == (axis,) else None for t in tracks]
    left = []
    for track, coarse in zip(tracks, lines, strict=True):
        finer = [] if coarse is None else [f for f in lines if f is not None and _explains(f, coarse)]
        for fine in finer:
            run.labels.contains.append((coarse, fine, node.name))
        if not finer:
            left.append(track)
    return left


def _explains(fine: np.ndarray, coarse: np.ndarray) -> bool:
    """Each label of `fine` faces one label of `coarse`, and some of `coarse` face several."""
    if not (fine > 0).all() or not (coarse > 0).all():
        return False
    pairs = len(np.unique(np.stack([fine, coarse]), axis=1)[0])
    return pairs == len(np.unique(fine)) > len(np.unique(coarse))
