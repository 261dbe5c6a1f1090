"""Operators that take a part: slices, splits and indices, whose bounds and positions move."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture import concrete
from prunus.errors import SurgeryError
from prunus.surgery.rewrite import (
    REWRITERS,
    Rewriting,
    argument,
    aten,
    main_input,
    rewrites,
    set_all,
    set_argument,
)


def chosen(run: Rewriting, node: fx.Node, axis: int, positions: Tensor) -> Tensor:
    """Where the given old positions of an axis are now, without those that left."""
    line = run.line(node, axis)
    if line is None:
        return positions
    rank = torch.cumsum(line, 0) - 1
    return rank[positions[line[positions]]]


@rewrites("slice")
def _slice(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    value = run.kept(source)
    dim = argument(node, "dim") % len(value.shape)
    if run.line(source, dim) is None:
        return
    size = value.before[dim]
    bounds = [
        concrete(x.meta["val"]) if isinstance(x, fx.Node) else x
        for x in (argument(node, "start"), argument(node, "end"))
    ]
    step = argument(node, "step")
    before = torch.arange(size)[slice(bounds[0], bounds[1], step)]
    if not len(before):  # what was empty stays so
        set_argument(copy, "start", 0)
        set_argument(copy, "end", 0)
        return
    positions = chosen(run, source, dim, before)
    if not len(positions):
        raise SurgeryError(f"nothing is left of the slice {node.name}")
    stride = int(positions[1] - positions[0]) if len(positions) > 1 else 1
    if bool((torch.diff(positions) == stride).all()):
        start, stop = int(positions[0]), int(positions[-1]) + 1
        set_all(
            copy, (copy.args[0], dim, start, stop if stop < value.shape[dim] else 9223372036854775807, stride)
        )
    else:
        copy.target = aten.index_select.default
        set_all(copy, (copy.args[0], dim, run.constant(positions, node.name)))


@rewrites("narrow")
def _narrow(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    dim = argument(node, "dim") % len(run.kept(source).shape)
    if run.line(source, dim) is None:
        return
    start, length = argument(node, "start"), argument(node, "length")
    positions = chosen(run, source, dim, torch.arange(start, start + length))
    set_argument(copy, "start", int(positions[0]))
    set_argument(copy, "length", len(positions))


@rewrites("select")
def _select(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    dim = argument(node, "dim") % len(run.kept(source).shape)
    line = run.line(source, dim)
    index = argument(node, "index")
    if line is None or isinstance(index, fx.Node):
        return
    index %= len(line)
    if not bool(line[index]):
        raise SurgeryError(f"{node.name} selects index {index} of axis {dim}, which is removed")
    set_argument(copy, "index", int(line[:index].sum()))


@rewrites(
    "split",
    "split_with_sizes",
    "chunk",
    "tensor_split",
    "unsafe_split",
    "unsafe_split_with_sizes",
    "unsafe_chunk",
    "hsplit",
    "vsplit",
)
def _split(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    value, out = run.kept(source), run.kept(node)
    dim = argument(node, "dim") % len(value.shape)
    sizes = [part.shape[dim] for part in out]
    if sizes == [part.before[dim] for part in out]:
        return
    if "chunk" in str(node.target) and len(set(sizes)) == 1:
        return
    copy.target = aten.split_with_sizes.default
    set_all(copy, (copy.args[0], sizes, dim))


@rewrites("unbind")
def _unbind(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    line = run.line(source, argument(node, "dim"))
    if line is None:
        return
    ranks = (torch.cumsum(line, 0) - 1).tolist()
    copy.meta["kept_outputs"] = {i: rank for i, rank in enumerate(ranks) if line[i]}


@rewrites("index_select")
def _index_select(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source = main_input(node)
    dim = argument(node, "dim") % len(run.kept(source).shape)
    index = run.values[argument(node, "index").name].data
    if run.line(source, dim) is None or index is None:
        return
    set_argument(copy, "index", run.constant(chosen(run, source, dim, index), node.name))


@rewrites("index", "_unsafe_index")
def _index(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    source, indices = main_input(node), list(node.args[1])  # type: ignore[arg-type]
    value, out = run.kept(source), run.kept(node)
    data = [run.values[i.name].data if isinstance(i, fx.Node) else None for i in indices]
    if any(isinstance(i, fx.Node) and d is None for i, d in zip(indices, data, strict=True)):
        return
    if any(d is not None and d.dtype == torch.bool for d in data):
        if len([d for d in data if d is not None]) > 1 or next(d for d in data if d is not None).dim() > 1:
            return
        data = [None if d is None else torch.nonzero(d).flatten() for d in data]
    places = [k for k, d in enumerate(data) if d is not None]
    block = torch.broadcast_shapes(*(d.shape for d in data if d is not None))
    adjacent = places == list(range(places[0], places[-1] + 1))
    start = places[0] if adjacent else 0
    lines = [out.line(start + j) for j in range(len(block))]
    if all(line is None for line in lines) and all(run.line(source, k) is None for k in places):
        return
    if value.grids and any(k in axes for axes, _, _ in value.grids for k in places):
        raise SurgeryError(f"{node.name} indexes an axis whose rows keep different channels")
    replaced: list[Any] = list(copy.args[1])  # type: ignore[arg-type]
    for k in places:
        index = data[k].expand(block)  # type: ignore[union-attr]
        for j, line in enumerate(lines):
            if line is not None:
                index = index.index_select(j, torch.nonzero(line).flatten())
        kept_here = run.line(source, k)
        if kept_here is not None:
            index = (torch.cumsum(kept_here, 0) - 1)[index]
        replaced[k] = run.constant(index.contiguous(), f"{node.name}_{k}")
    copy.update_arg(1, replaced)


@rewrites(
    "gather",
    "take_along_dim",
    "scatter",
    "scatter_",
    "scatter_add",
    "scatter_add_",
    "scatter_reduce",
    "scatter_reduce_",
)
def _aligned(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    """An index without labels of its own loses what its operand lost along the axes that it does not choose from."""
    name = "indices" if "take_along_dim" in str(node.target) else "index"
    index, dim = argument(node, name), argument(node, "dim")
    out, given = run.kept(node), run.kept(index)
    for axis in range(len(out.shape)):
        line = out.line(axis)
        if dim is None or axis == dim % len(out.shape) or line is None:
            continue
        if given.shape[axis] == len(line):
            _take(run, copy, name, axis, line)


def _take(run: Rewriting, copy: fx.Node, name: str, axis: int, line: Tensor) -> None:
    places = run.constant(torch.nonzero(line).flatten(), f"{copy.name}_{axis}")
    source = argument(copy, name)
    with run.graph.inserting_before(copy):
        taken = run.graph.call_function(aten.index_select.default, (source, axis, places))
    shape = list(source.meta["val"].shape)
    shape[axis] = int(line.sum())
    taken.meta["val"] = torch.empty(shape, dtype=source.meta["val"].dtype, device="meta")
    set_argument(copy, name, taken)


def _getitem(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    mapping = copy.args[0].meta.get("kept_outputs")  # type: ignore[union-attr]
    if mapping is not None:
        copy.update_arg(1, mapping.get(node.args[1], 0))


REWRITERS[operator.getitem] = _getitem
