"""Writing at indices: nothing may be removed along an axis on which indices say where to write.

Along the other axes position i of what is written goes to position i of what it is written to.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import tighten
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

WRITTEN = "is a position to which an index writes"


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """The index has the rank of the operand, and says where along `dim` each entry goes."""
    shape = a.self.shape
    if not shape:
        return run.unknown(node)
    dim = a.dim % len(shape)
    values = [a.self, a.index, *(v for v in (getattr(a, "src", None),) if isinstance(v, Value))]
    # where the index is smaller, it says by its size which part is written
    part = {i for i in range(len(shape)) if any(v.shape[i] != shape[i] for v in values)}
    fixed = part | {dim}
    index = pliable(a.index, set(range(len(shape))) - fixed)
    return _line_by_line(run, node, [a.self, index, *values[2:]], fixed)


def pliable(index: Value, axes: set[int]) -> Value:
    """An index as of size 1 along those of `axes` on which it has no labels: surgery takes from it what is needed."""
    bare = axes - index.varying()
    shape = tuple(1 if axis in bare else size for axis, size in enumerate(index.shape))
    return Value(shape, tuple(_first(track, bare) for track in index.tracks))


@rule(
    "index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_", "index_fill", "index_fill_"
)  # fmt: skip
def at_index(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """A vector of indices along `dim`, the same for all lines."""
    shape = a.self.shape
    if not shape:
        return run.unknown(node)
    source = getattr(a, "source", None)
    values = [a.self, source] if isinstance(source, Value) and source.shape else [a.self]
    run.hold(node, a.index, {0}, "is used as an index")
    return _line_by_line(run, node, values, {a.dim % len(shape)})


def _line_by_line(run: Any, node: fx.Node, values: list[Value], fixed: set[int]) -> Value:
    """The first of `values` after the others were written to it, with nothing removable along the `fixed` axes."""
    shape = values[0].shape
    line = tuple(1 if axis in fixed else size for axis, size in enumerate(shape))
    lines = []
    for value in values:
        kept = run.hold(node, value, fixed, WRITTEN)
        sizes = tuple(min(pair) for pair in zip(value.shape, line, strict=True))
        lines.append(Value(sizes, tuple(_first(track, fixed) for track in kept)))
    return Value(shape, tuple(track.expand(shape) for track in run.meet(node, line, *lines)))


def _first(track: Tensor, axes: set[int]) -> Tensor:
    for axis in axes:
        track = track.narrow(axis, 0, min(1, track.shape[axis]))
    return track


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Indices for some axes; what is written there has the other axes of the operand."""
    shape = a.self.shape
    chosen: list[Tensor | None] = []
    indexed: set[int] = set()
    axis = 0
    for given, used in zip(a.indices, node.args[1], strict=True):  # type: ignore[arg-type]
        if given is None:
            chosen.append(None)
            axis += 1
            continue
        run.hold(node, given, set(range(len(given.shape))), "is used as an index")
        mask = used.meta["val"].dtype in (torch.bool, torch.uint8)
        width = len(given.shape) if mask else 1
        # any positions will do: nothing varies along these axes
        chosen += [torch.zeros(1 if mask else given.shape, dtype=torch.long)] * width
        indexed |= set(range(axis, axis + width))
        axis += width
    target = Value(shape, tuple(run.hold(node, a.self, indexed, WRITTEN)))
    _write(run, node, target, a.values, chosen)
    return target


def _write(run: Any, node: fx.Node, target: Value, written: Value, chosen: list[Tensor | None]) -> None:
    """Relate the axes that are not indexed; what is written along the others stays."""
    window = torch.zeros(()).expand(target.shape)[_index(chosen)].shape
    places = [i for i, index in enumerate(chosen) if index is not None]
    block = torch.broadcast_shapes(*(index.shape for index in chosen if index is not None))
    start = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    extra = len(window) - len(written.shape)
    fixed = {i - extra for i in range(start, start + len(block)) if i >= extra}
    kept = [_first(track, fixed) for track in run.hold(node, written, fixed, "is written at an index")]
    sizes = tuple(1 if i in fixed else size for i, size in enumerate(written.shape))
    tracks = tuple(tighten(track[_index(chosen)]) for track in target.tracks)
    run.meet(node, tuple(window), Value(tuple(window), tracks), Value(sizes, tuple(kept)))


def _index(chosen: list[Tensor | None]) -> tuple[Any, ...]:
    return tuple(slice(None) if index is None else index for index in chosen)
