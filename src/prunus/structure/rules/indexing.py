"""Indexing by tensors. Constant indices move labels; indices that depend on data hold the axis they choose from."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import tighten, varying
from prunus.structure.layout import moved, same_columns
from prunus.structure.rules.registry import rule
from prunus.structure.rules.scattering import pliable
from prunus.structure.value import Value


@rule("index.Tensor", "_unsafe_index.Tensor")
def index(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = run.shape(node)
    indices = list(a.indices)
    indexed, axis = set(), 0
    for i in indices:
        width = len(i.shape) if i is not None and i.data is not None and i.data.dtype == torch.bool else 1
        if i is not None:
            indexed |= set(range(axis, axis + width))
        axis += width
    constant = all(i is None or i.data is not None for i in indices)
    if not constant and any(i is not None and _is_bool(node, k) for k, i in enumerate(indices)):
        return run.unknown(node)
    value = a.self
    if not constant:
        value = Value(
            value.shape, tuple(run.hold(node, value, indexed, "is chosen by an index that depends on data"))
        )
    # labels do not vary along an axis indexed by data: any index of the right shape will do there
    chosen = [
        None if i is None else i.data if constant else torch.zeros(i.shape, dtype=torch.long) for i in indices
    ]
    tracks = []
    for track in value.tracks:
        if constant and not set(varying(track)) & indexed:
            chosen_here = [
                None if i is None else torch.zeros_like(i) if i.dtype != torch.bool else i for i in chosen
            ]
        else:
            chosen_here = chosen
        tracks.append(tighten(torch.ops.aten.index.Tensor(track, chosen_here)).expand(shape))
    if constant:
        for track in value.tracks:
            same_columns(run.labels, track, indexed, node.name)
    tracks = [moved(run.labels, *pair, node.name) for pair in zip(value.tracks, tracks, strict=True)]
    for i in indices:
        if i is not None and i.tracks:
            run.hold(node, i, set(range(len(i.shape))), "is used as an index")
    return Value(shape, tuple(tracks))


def _is_bool(node: fx.Node, k: int) -> bool:
    used = node.args[1][k]  # type: ignore[index]
    return isinstance(used, fx.Node) and used.meta["val"].dtype == torch.bool


@rule("index_select")
def index_select(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = run.shape(node)
    dim = a.dim % len(shape)
    value, chosen = a.self, a.index.data
    if chosen is None:
        value = Value(
            value.shape, tuple(run.hold(node, value, {dim}, "is chosen by an index that depends on data"))
        )
        chosen = torch.zeros(shape[dim], dtype=torch.long)
    tracks = []
    for track in value.tracks:
        same_columns(run.labels, track, {dim}, node.name)
        tracks.append(moved(run.labels, track, _select(track, dim, chosen, shape), node.name))
    return Value(shape, tuple(tracks))


def _select(track: Tensor, dim: int, chosen: Tensor, shape: tuple[int, ...]) -> Tensor:
    if dim not in varying(track):
        return track.narrow(dim, 0, 1).expand(shape)
    return tighten(track.index_select(dim, chosen))


@rule("gather", "take_along_dim")
def gather(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Along `dim` the index chooses; along the other axes position i of the index takes position i of the operand."""
    shape = run.shape(node)
    rank = len(shape)
    if a.dim is None or not rank:
        return run.unknown(node)
    dim = a.dim % rank
    value = a.self
    index_value = getattr(a, "index", None) or a.indices
    value = Value(value.shape, tuple(run.hold(node, value, {dim}, "is chosen by an index")))
    line = (*shape[:dim], 1, *shape[dim + 1 :])
    if any(s < v for i, (s, v) in enumerate(zip(shape, value.shape, strict=True)) if i != dim):
        run.hold(node, value, set(range(rank)), "is partly left out by an index")
        return run.solid(node)
    own = [t for t in index_value.tracks if dim in varying(t)]
    for track in own:
        run.labels.hold(track, "is an index", node.name)
    along = tuple(t.narrow(dim, 0, 1) for t in index_value.tracks if dim not in varying(t))
    others = pliable(
        Value((*index_value.shape[:dim], 1, *index_value.shape[dim + 1 :]), along), set(range(rank)) - {dim}
    )
    mine = Value(line, tuple(t.narrow(dim, 0, 1) for t in value.tracks))
    return Value(shape, tuple(t.expand(shape) for t in run.meet(node, line, mine, others)))


@rule("diag_embed")
def diagonal(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Position i of the last axis becomes row i and column i."""
    shape = run.shape(node)
    places, n = (a.dim1 % len(shape), a.dim2 % len(shape)), a.self.shape[-1]
    if a.offset:
        kept = run.hold(node, a.self, {len(a.self.shape) - 1}, "is laid on a diagonal beside the middle")
        return Value(shape, tuple(_on_diagonal(track, shape[places[0]], places) for track in kept))
    last = len(a.self.shape) - 1
    rows = [_on_diagonal(track, n, places) for track in a.self.tracks]
    columns = [_on_diagonal(track, n, places[::-1]) for track in a.self.tracks if last in varying(track)]
    return Value(shape, (*rows, *columns))


def _on_diagonal(track: Tensor, size: int, places: tuple[int, ...]) -> Tensor:
    """A track whose last axis is moved to the first of two places of a result of `size` rows and columns."""
    if track.shape[-1] != size:
        track = track.narrow(-1, 0, 1).expand(*track.shape[:-1], size)
    return track.unsqueeze(-1).expand(*track.shape, size).movedim((-2, -1), places)


@rule("tril", "triu", "tril_", "triu_")
def triangle(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Which entries become zero depends on their positions along the last two axes."""
    rank = len(a.self.shape)
    kept = run.hold(node, a.self, {rank - 2, rank - 1}, "is a position by which a triangle is cut out")
    return Value(a.self.shape, tuple(kept))
