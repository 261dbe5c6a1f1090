"""Packs: several projections in one layer (q, k and v), told apart by unbinding an axis of a reshape.

Where the parts keep different widths the reshape has no rectangular result any more. Surgery then splits the layer's output
before the reshape, and reshapes each part for itself; this module finds where that can be done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import fx

from prunus.capture import Captured, size_of
from prunus.structure.hashing import distinct
from prunus.structure.labels import Grid, compact, outer_to_inner, varying
from prunus.structure.value import Value

aten = torch.ops.aten
RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.unflatten.int)
MOVES = (
    aten.permute.default, aten.transpose.int, aten.contiguous.default, aten.clone.default, aten.alias.default,
    aten.unsqueeze.default, aten.squeeze.dim,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Pack:
    """One packed layer output.

    Attributes:
        reshape: the node that lays out the parts along an axis of their own.
        dim: the axis of the reshape's input that holds all parts, one after the other.
        path: nodes from the reshape (included) to where the parts are told apart.
        ends: per part, the nodes that take it, and the axis along which they do.
        axis: that axis, of the last node of the path.
        labels: (parts, ...) labels of each part.
    """

    reshape: fx.Node
    dim: int
    path: tuple[fx.Node, ...]
    ends: tuple[tuple[fx.Node, ...], ...]
    axis: int
    labels: np.ndarray

    @cached_property
    def nodes(self) -> frozenset[str]:
        """Names of the nodes that lay out, move and take apart the parts."""
        ends = (node for part in self.ends for node in part)
        return frozenset(node.name for node in (*self.path, *self.path[-1].users, *ends))

    def lays_out(self, grid: Grid) -> bool:
        """Whether a grid is of the parts on their way; the same channels laid out in rows elsewhere are no pack."""
        if grid.node not in self.nodes or len(grid.labels) != len(self.labels):
            return False
        pairs = zip(grid.labels, self.labels, strict=True)
        return all(np.array_equal(distinct(mine), distinct(part)) for mine, part in pairs)


def find_packs(captured: Captured, values: dict[str, Any]) -> list[Pack]:
    """All reshapes whose outermost new axis is only ever unbound or selected from."""
    packs = []
    for node in captured.graph.nodes:
        if node.op == "call_function" and node.target in RESHAPES:
            pack = _pack(node, values)
            if pack is not None:
                packs.append(pack)
    return packs


def _pack(node: fx.Node, values: dict[str, Any]) -> Pack | None:
    source: Any = node.args[0]
    before, after = values[source.name], values[node.name]
    if not isinstance(before, Value) or len(before.tracks) != len(after.tracks):
        return None
    laid_out = [track for track in after.tracks if len(varying(track)) > 1]
    if len(laid_out) != 1:  # other tracks, such as that of the tokens, have an axis of their own
        return None
    axes = varying(laid_out[0])
    labels = compact(laid_out[0], axes)
    flat = next((f for f in map(varying, before.tracks) if len(f) == 1 and _same(before, f, labels)), None)
    if flat is None:
        return None
    order = outer_to_inner(labels)
    if order != sorted(order):
        return None
    grid = labels.numpy()
    if len(distinct(grid)) != grid.size:
        return None
    found = _follow(node, axes[order[0]], grid.shape[0])
    if found is None:
        return None
    path, axis, ends = found
    return Pack(node, flat[0], path, ends, axis, grid)


def _same(before: Value, axes: tuple[int, ...], labels: torch.Tensor) -> bool:
    """Whether these labels, one after the other, lie along that axis of a value."""
    lines = [compact(track, axes) for track in before.tracks if varying(track) == axes]
    return any(torch.equal(line, labels.reshape(-1)) for line in lines)


def _follow(
    node: fx.Node, axis: int, parts: int
) -> tuple[tuple[fx.Node, ...], int, tuple[tuple[fx.Node, ...], ...]] | None:
    path = [node]
    while True:
        rank = node.meta["val"].dim()
        ends = _ends(node, axis, rank, parts)
        if ends is not None:
            return tuple(path), axis, ends
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
        moved = _moved(node, axis, rank) if node.target in MOVES else _reshaped(node, axis)
        if moved is None:
            return None
        axis = moved
        path.append(node)


def _moved(node: fx.Node, axis: int, rank: int) -> int:
    args: Any = node.args
    if node.target is aten.permute.default:
        return [d % rank for d in args[1]].index(axis)
    if node.target is aten.transpose.int:
        a, b = args[1] % rank, args[2] % rank
        return b if axis == a else a if axis == b else axis
    if node.target is aten.unsqueeze.default:
        return axis + (args[1] % (rank + 1) <= axis)
    if node.target is aten.squeeze.dim:
        return axis - (args[1] % rank < axis)
    return axis


def _reshaped(node: fx.Node, axis: int) -> int | None:
    """Where an axis is after others were merged or split, as it was; None where it was not left alone."""
    if node.target not in (*RESHAPES, aten.flatten.using_ints):
        return None
    before, after = size_of(node.args[0]), size_of(node)  # type: ignore[arg-type]
    found = (
        i
        for i, size in enumerate(after)
        if size == before[axis] and math.prod(after[:i]) == math.prod(before[:axis])
    )
    return next(found, None)


def _ends(node: fx.Node, axis: int, rank: int, parts: int) -> tuple[tuple[fx.Node, ...], ...] | None:
    """Per part the nodes that are just that part; None if something else uses the value."""
    ends: list[list[fx.Node]] = [[] for _ in range(parts)]
    for user in node.users:
        args: Any = user.args
        dim = args[1] if len(args) > 1 else 0
        if user.target is aten.select.int and dim % rank == axis and isinstance(args[2], int):
            ends[args[2] % parts].append(user)
        elif user.target is aten.unbind.int and dim % rank == axis:
            for item in user.users:
                part: Any = item.args[1]
                ends[part].append(item)
        else:
            return None
    return tuple(tuple(e) for e in ends)
