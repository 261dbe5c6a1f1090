"""Tensors made inside the graph: every axis gets labels, so that they can shrink with what they meet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.labels import along
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
