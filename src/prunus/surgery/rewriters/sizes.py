"""Operators whose arguments are sizes: shapes to make, repeats, widths of padding, shifts."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import fx

from prunus.surgery.rewrite import (
    Rewriting,
    argument,
    aten,
    main_input,
    rewrites,
    set_argument,
)


def resized(run: Rewriting, copy: fx.Node, size: Any, old: int, new: int) -> Any:
    """One entry of a size list: as it was, the new number, or the symbolic size scaled by what stays."""
    if old == new or (isinstance(size, int) and size == -1):
        return size
    if isinstance(size, int):
        return new
    factor = math.gcd(old, new)
    with run.graph.inserting_before(copy):
        scaled = run.graph.call_function(operator.mul, (size, new // factor))
        scaled.meta["val"] = size.meta["val"] * (new // factor)
        result = run.graph.call_function(operator.floordiv, (scaled, old // factor))
        result.meta["val"] = scaled.meta["val"] // (old // factor)
    return result


def _resize(run: Rewriting, node: fx.Node, copy: fx.Node, name: str, offset: int = 0) -> None:
    out = run.kept(node)
    sizes = list(argument(copy, name))
    for i, size in enumerate(sizes):
        sizes[i] = resized(run, copy, size, out.before[i + offset], out.shape[i + offset])
    set_argument(copy, name, sizes)


@rewrites(
    "view",
    "_unsafe_view",
    "expand",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
    "zeros",
    "ones",
    "full",
    "empty",
    "rand",
    "randn",
    "broadcast_to",
)
def _sized(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    if node.target is aten.view.dtype:
        return
    _resize(run, node, copy, "shape" if node.target is aten.reshape.default else "size")


@rewrites("zeros_like", "ones_like", "empty_like", "full_like")
def _like(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    """Where another number of channels stays than of the tensor that the size is taken from, the size is said."""
    out, given = run.kept(node), copy.args[0]
    if out.shape == run.kept(main_input(node)).shape:
        return
    name = str(node.target).split(".")[1].removesuffix("_like")
    fill = (argument(node, "fill_value"),) if name == "full" else ()
    options = {
        key: value for key, value in copy.kwargs.items() if key in ("dtype", "layout", "device", "pin_memory")
    }
    free = main_input(node).meta["val"].shape  # of the original: the small graph has the sizes of the example
    sizes = [_size_along(run, copy, given, axis, size, free[axis]) for axis, size in enumerate(out.shape)]
    copy.target = getattr(aten, f"new_{name}").default
    copy.args, copy.kwargs = (given, sizes, *fill), options


def _size_along(run: Rewriting, copy: fx.Node, given: Any, axis: int, size: int, own: Any) -> Any:
    if isinstance(own, int):
        return size
    with run.graph.inserting_before(copy):
        asked = run.graph.call_function(aten.sym_size.int, (given, axis))
    asked.meta["val"] = own
    return asked


@rewrites("reshape")
def _reshape(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    _resize(run, node, copy, "shape")


@rewrites("unflatten")
def _unflatten(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    dim = argument(node, "dim") % len(run.kept(main_input(node)).shape)
    _resize(run, node, copy, "sizes", dim)


@rewrites("repeat", "tile")
def _repeat(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    name = "repeats" if "repeat" in str(node.target) else "dims"
    source, out = run.kept(main_input(node)), run.kept(node)
    repeats = list(argument(copy, name))
    extra = len(out.shape) - len(source.shape)
    first = len(out.shape) - len(repeats)  # tile may leave out the axes in front
    for i in range(len(repeats)):
        axis = i + first
        old = source.shape[axis - extra] if axis >= extra else 1
        if isinstance(repeats[i], int):
            repeats[i] = out.shape[axis] // old
    set_argument(copy, name, repeats)


@rewrites("repeat_interleave")
def _repeat_interleave(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    if node.target is not aten.repeat_interleave.self_int or argument(node, "dim") is None:
        return
    dim = argument(node, "dim")
    source, out = run.kept(main_input(node)), run.kept(node)
    if out.line(dim) is None:
        return
    set_argument(copy, "repeats", out.shape[dim] // source.shape[dim])
    if argument(node, "output_size") is not None:
        set_argument(copy, "output_size", out.shape[dim])


# ---------------------------------------------------------------------- parts of an axis


@rewrites("pad", "constant_pad_nd")
def _pad(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    out = run.kept(node)
    widths = list(argument(copy, "pad"))
    for i in range(len(widths) // 2):
        axis = len(out.shape) - 1 - i
        line = out.line(axis)
        if line is not None:
            before, after = max(widths[2 * i], 0), max(widths[2 * i + 1], 0)
            widths[2 * i] = int(line[:before].sum()) if before else widths[2 * i]
            widths[2 * i + 1] = int(line[len(line) - after :].sum()) if after else widths[2 * i + 1]
    set_argument(copy, "pad", widths)


@rewrites("roll")
def _roll(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    """As many positions wrap around as are left of those that did."""
    source = main_input(node)
    shifts, dims = list(argument(copy, "shifts")), list(argument(node, "dims"))
    for i, dim in enumerate(dims):
        line = run.line(source, dim)
        if line is not None:
            wrapped = shifts[i] % len(line)
            shifts[i] = int(line[len(line) - wrapped :].sum())
    set_argument(copy, "shifts", shifts)


# ---------------------------------------------------------------------- layers
