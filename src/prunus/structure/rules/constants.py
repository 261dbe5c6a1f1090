"""Tensors made inside the graph: every axis gets labels, so that they can shrink with what they meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.labels import along, varying
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule(
    "zeros",
    "ones",
    "empty",
    "full",
    "rand",
    "randn",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "empty_strided",
)
def create(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = run.shape(node)
    sizes = node.meta["val"].shape
    tracks = [
        along(run.labels.fresh(size, axis), (axis,), shape)
        for axis, size in enumerate(shape)
        if size > 1 and isinstance(sizes[axis], int)
    ]
    return Value(shape, tuple(tracks))


@rule("zeros_like", "ones_like", "empty_like", "full_like")
def alike(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """As large as another tensor, along axes of which each can shrink as what is written or added there does."""
    joint = {axis for track in a.self.tracks if len(varying(track)) > 1 for axis in varying(track)}
    sizes = node.meta["val"].shape
    free = {axis for axis in a.self.varying() - joint if isinstance(sizes[axis], int)}
    same = [track for track in a.self.tracks if not set(varying(track)) <= free]
    new = [along(run.labels.fresh(a.self.shape[axis], axis), (axis,), a.self.shape) for axis in sorted(free)]
    return Value(a.self.shape, (*same, *new))


@rule(
    "arange", "linspace", "scalar_tensor", "randint", "randperm", "logspace", "tril_indices", "triu_indices"
)
def positions(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Counting tensors: their entries depend on where they stand."""
    return run.solid(node)


@rule("sym_size", "sym_numel", "sym_stride", "sym_storage_offset", "size")
def size(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    value = a.self
    dim = getattr(a, "dim", None)
    return value.shape[dim] if dim is not None else run.solid(node)
