"""Concatenation and stacking."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import along, tighten, varying
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule("cat", "concat", "concatenate")
def cat(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Labels along the joined axis are joined; labels along others must agree between the operands."""
    shape = run.shape(node)
    dim = a.dim % len(shape)
    parts = [v for v in a.tensors if 0 not in v.shape]
    if not parts:
        return run.solid(node)
    across = _across(run, node, parts, dim, shape)
    joined = _joined(run, node, parts, dim, shape)
    return Value(shape, tuple(across + joined))


def _across(run: Any, node: fx.Node, parts: list[Value], dim: int, shape: tuple[int, ...]) -> list[Tensor]:
    if not any(len(set(varying(t)) - {dim}) for v in parts for t in v.tracks):
        return []
    # compare the operands at one position of the joined axis
    flat = [
        Value(
            (*v.shape[:dim], 1, *v.shape[dim + 1 :]),
            tuple(t.narrow(dim, 0, 1) for t in v.tracks if dim not in varying(t)),
        )
        for v in parts
    ]
    merged = run.meet(
        node, (*shape[:dim], 1, *shape[dim + 1 :]), *_without_grids(run, node, flat, parts, dim)
    )
    return [track.expand(shape) for track in merged]


def _without_grids(run: Any, node: fx.Node, flat: list[Value], parts: list[Value], dim: int) -> list[Value]:
    """Add, for tracks that vary along the joined axis and others, their slabs along the others."""
    out = []
    for small, value in zip(flat, parts, strict=True):
        tracks = list(small.tracks)
        for track in value.tracks:
            axes = varying(track)
            if dim in axes and len(axes) > 1:
                rest = tuple(axis for axis in axes if axis != dim)
                tracks.append(run.labels.project(track, rest, node.name).narrow(dim, 0, 1))
        out.append(Value(small.shape, tuple(tracks)))
    return out


def _joined(run: Any, node: fx.Node, parts: list[Value], dim: int, shape: tuple[int, ...]) -> list[Tensor]:
    mine = [[t for t in v.tracks if dim in varying(t)] for v in parts]
    count = max(len(tracks) for tracks in mine)
    if not count:
        return []
    result = []
    for i in range(count):
        axes = sorted({axis for tracks in mine if i < len(tracks) for axis in varying(tracks[i])})
        pieces = []
        for value, tracks in zip(parts, mine, strict=True):
            sizes = tuple(s if axis in axes else 1 for axis, s in enumerate(value.shape))
            if i < len(tracks):
                index = tuple(slice(None) if axis in axes else slice(0, 1) for axis in range(len(shape)))
                pieces.append(tracks[i][index])
            elif tracks:
                pieces.append(torch.zeros(sizes, dtype=torch.long))
            else:
                new = along(run.labels.fresh(value.shape[dim]), (dim,), sizes)
                run.labels.hold(new, "is joined to channels from where nothing can be removed", node.name)
                pieces.append(new)
        sizes = tuple(s if axis in axes else 1 for axis, s in enumerate(shape))
        result.append(
            tighten(
                torch.cat([p.expand(*(sizes[:dim]), p.shape[dim], *sizes[dim + 1 :]) for p in pieces], dim)
            ).expand(shape)
        )
    return result


@rule("stack")
def stack(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Index i of one operand goes with index i of the others."""
    shape = run.shape(node)
    dim = a.dim % len(shape)
    merged = run.meet(node, a.tensors[0].shape, *a.tensors)
    return Value(shape, tuple(track.unsqueeze(dim).expand(shape) for track in merged))


@rule("hstack", "vstack", "row_stack", "dstack", "column_stack")
def by_axis(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Concatenation along the axis that the operator stands for, of operands that have it."""
    axes = {"hstack": 1, "vstack": 0, "row_stack": 0, "dstack": 2, "column_stack": 1}
    a.dim = axes[node.target._schema.name.removeprefix("aten::")]  # type: ignore[union-attr]
    if any(len(value.shape) < max(2, a.dim + 1) for value in a.tensors):
        return run.unknown(node)
    return cat(run, node, a)


@rule("meshgrid")
def meshgrid(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Every operand lies along an axis of its own of all results."""
    results = run.shapes(node)
    shape = results[0]
    order = list(range(len(shape)))
    if getattr(a, "indexing", "ij") == "xy" and len(order) > 1:
        order[:2] = 1, 0
    tracks = [
        along(track.reshape(-1), (order[i],), shape)
        for i, value in enumerate(a.tensors)
        for track in value.tracks
        if varying(track)
    ]
    return tuple(Value(shape, tuple(tracks)) for _ in results)
