"""Reductions drop the labels of the axes they reduce; what a grid keeps along the others are slabs (rows)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import Tensor, fx

from prunus.structure.labels import compact, varying
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value, respread


@rule(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod", "logsumexp", "norm", "linalg_vector_norm",
    "any", "all", "nansum", "aminmax", "count_nonzero", "frobenius_norm",
)  # fmt: skip
def reduce(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    if getattr(a, "other", None) is not None and isinstance(a.other, Value):  # the binary max and min
        return run.pointwise(node, [a.self, a.other])
    dim = getattr(a, "dim", None)
    rank = len(a.self.shape)
    dims = (
        set(range(rank))
        if dim is None or dim == []
        else {d % rank for d in (dim if isinstance(dim, (list, tuple)) else [dim])}
    )
    shapes = run.shapes(node)
    tracks = reduced(run, node, a.self, dims)
    if isinstance(shapes, tuple) and shapes and isinstance(shapes[0], tuple):
        return tuple(_place(tracks, dims, rank, shape) for shape in shapes)
    return _place(tracks, dims, rank, shapes)


def reduced(run: Any, node: fx.Node, value: Value, dims: set[int]) -> list[Tensor]:
    """Tracks that are left, still on the operand's shape."""
    out = []
    for track in value.tracks:
        axes = set(varying(track))
        if axes - dims:
            out.append(run.labels.project(track, tuple(axes - dims), node.name))
    return out


def _place(tracks: list[Tensor], dims: set[int], rank: int, shape: tuple[int, ...]) -> Value:
    keepdim = len(shape) == rank
    new = {axis: axis if keepdim else axis - sum(d < axis for d in dims) for axis in range(rank)}
    return Value(shape, tuple(respread(t, tuple(new[x] for x in varying(t)), shape) for t in tracks))


@rule(
    "argmax",
    "argmin",
    "sort",
    "topk",
    "cumsum",
    "cumprod",
    "cumprod_",
    "cumsum_",
    "argsort",
    "kthvalue",
    "median",
    "mode",
    "cummax",
    "cummin",
    "logcumsumexp",
    "msort",
)
def along_axis(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """The result depends on positions along `dim`: nothing may be removed there."""
    rank = len(a.self.shape)
    dim = 0 if "msort" in str(node.target) else getattr(a, "dim", None)
    dims = set(range(rank)) if dim is None or not rank else {dim % rank}
    kept = run.hold(node, a.self, dims, f"is ordered or counted by {node.target}")
    shapes = run.shapes(node)
    many = isinstance(shapes, tuple) and shapes and isinstance(shapes[0], tuple)
    results = []
    for shape in shapes if many else (shapes,):
        keepdim = len(shape) == rank
        new = {axis: axis if keepdim else axis - sum(d < axis for d in dims) for axis in range(rank)}
        results.append(
            Value(shape, tuple(respread(t, tuple(new[x] for x in varying(t)), shape) for t in kept))
        )
    return tuple(results) if many else results[0]


def spread(track: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A track on a shape of the same rank that differs only along axes on which the track is constant."""
    from prunus.structure.labels import along

    axes = varying(track)
    return along(compact(track, axes), axes, shape)
