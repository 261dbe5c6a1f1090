"""Rewrite the constants of a graph for the positions that stay.

Shapes, bounds, widths, group counts: every constant that belongs to a labelled axis is recomputed from the labels that are
left along it. One small function per operator family; operators without one need no change.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import concrete
from prunus.errors import SurgeryError
from prunus.structure.packs import Pack
from prunus.structure.value import Value
from prunus.surgery.kept import kept, shaped
from prunus.surgery.unpack import skipped, unpack

aten = torch.ops.aten
Rewriter = Callable[["Rewriting", fx.Node, fx.Node], None]
REWRITERS: dict[Any, Rewriter] = {}


def rewrites(*names: str) -> Callable[[Rewriter], Rewriter]:
    """Register a rewriter for all overloads of the named aten operators."""

    def register(function: Rewriter) -> Rewriter:
        for name in names:
            if hasattr(aten, name):
                packet = getattr(aten, name)
                for overload in packet.overloads():
                    REWRITERS[getattr(packet, overload)] = function
        return function

    return register


class Rewriting:
    """The state of one rewrite: old nodes, what they looked like, what stays of them, the new graph."""

    def __init__(self, values: dict[str, Any], keep: Tensor) -> None:
        self.values = values
        self.keep = keep
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}
        self.suffix = ""
        self._kept: dict[str, Any] = {}

    def kept(self, node: fx.Node) -> Any:
        """What stays of a node's value: a `Kept`, a tuple of them, or None for what is no tensor."""
        if node.name not in self._kept:
            self._kept[node.name] = self._of(self.values[node.name], node.name)
        return self._kept[node.name]

    def _of(self, value: Any, where: str) -> Any:
        if isinstance(value, Value):
            return kept(value, self.keep, where)
        if isinstance(value, (tuple, list)):
            return tuple(self._of(v, where) for v in value)
        return None

    def line(self, node: fx.Node, axis: int) -> Tensor | None:
        """Mask of the positions that stay along an axis (of the first row that stays, where rows differ); None for all."""
        return self.kept(node).line(axis)

    def constant(self, tensor: Tensor, name: str) -> fx.Node:
        """A new constant tensor of the graph."""
        unique = f"c_{name}_kept"
        while unique in self.constants:
            unique += "_"
        self.constants[unique] = tensor
        first = next(iter(self.graph.nodes), None)
        with self.graph.inserting_before(first) if first is not None else self.graph.inserting_after():
            node = self.graph.placeholder(unique)
        node.meta["val"] = tensor
        return node

    def run(self, graph: fx.Graph, packs: list[Pack]) -> fx.Graph:
        """Copy the graph, with constants for what stays; `packs` are taken apart."""
        replaced = skipped(packs)
        at = {pack.reshape: pack for pack in packs}
        for node in graph.nodes:
            if node in at:
                unpack(self, at[node])
            elif node.name not in replaced:
                self.emit(node)
        return self.graph

    def emit(self, node: fx.Node) -> None:
        """Copy one node."""
        args = map_arg(node.args, lambda n: self.new[n])
        kwargs = map_arg(node.kwargs, lambda n: self.new[n])
        copy = self.graph.create_node(node.op, node.target, args, kwargs, node.name + self.suffix)  # type: ignore[arg-type]
        copy.meta = {**node.meta, "origin": node.name}
        self.new[node] = copy
        if node.op == "call_function":
            rewriter = REWRITERS.get(node.target)
            if rewriter is not None and self._touched(node):
                rewriter(self, node, copy)
        if node.op != "output":
            copy.meta["val"] = shaped(node.meta.get("val"), self.kept(node))

    def branch(self, keep: Tensor, suffix: str) -> Rewriting:
        """The same graph under another choice of what stays; its nodes are named apart."""
        other = Rewriting(self.values, keep)
        other.suffix = suffix
        other.graph, other.constants, other.new = self.graph, self.constants, dict(self.new)
        return other

    def _touched(self, node: fx.Node) -> bool:
        return any(_changed(self.kept(n)) for n in (node, *node.all_input_nodes))


def _changed(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_changed(v) for v in value)
    return value is not None and value.changed


def argument(node: fx.Node, name: str) -> Any:
    """An argument of an operator by its name in the schema, default filled in."""
    for i, a in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if a.name == name:
            return node.args[i] if i < len(node.args) else node.kwargs.get(name, a.default_value)
    raise KeyError(name)


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set an argument of an operator by its name in the schema."""
    for i, a in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if a.name == name:
            if i < len(node.args):
                node.update_arg(i, value)
            else:
                node.update_kwarg(name, value)
            return
    raise KeyError(name)


def main_input(node: fx.Node) -> fx.Node:
    """The operator's first operand."""
    return node.args[0]  # type: ignore[return-value]


# ---------------------------------------------------------------------- sizes
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
    for i in range(len(repeats)):
        old = source.shape[i - extra] if i >= extra else 1
        if isinstance(repeats[i], int):
            repeats[i] = out.shape[i] // old
    set_argument(copy, name, repeats)


@rewrites("repeat_interleave")
def _repeat_interleave(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    if node.target is not aten.repeat_interleave.self_int or argument(node, "dim") is None:
        return
    dim = argument(node, "dim")
    source, out = run.kept(main_input(node)), run.kept(node)
    set_argument(copy, "repeats", out.shape[dim] // source.shape[dim])
    if argument(node, "output_size") is not None:
        set_argument(copy, "output_size", out.shape[dim])


# ---------------------------------------------------------------------- parts of an axis
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
    positions = chosen(run, source, dim, torch.arange(size)[slice(bounds[0], bounds[1], step)])
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


def set_all(node: fx.Node, args: tuple[Any, ...]) -> None:
    """Replace all arguments."""
    node.args = args
    node.kwargs = {}


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


@rewrites("pad", "constant_pad_nd")
def _pad(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    out = run.kept(node)
    widths = list(argument(node, "pad"))
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
    shifts, dims = list(argument(node, "shifts")), list(argument(node, "dims"))
    for i, dim in enumerate(dims):
        line = run.line(source, dim)
        if line is not None:
            wrapped = shifts[i] % len(line)
            shifts[i] = int(line[len(line) - wrapped :].sum())
    set_argument(copy, "shifts", shifts)


# ---------------------------------------------------------------------- layers
@rewrites(
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "_convolution",
)
def _conv(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    if argument(node, "groups") == 1:
        return
    x, weight = run.kept(main_input(node)), run.kept(node.args[1])  # type: ignore[arg-type]
    spatial = len(weight.shape) - 2
    channels = x.shape[len(x.shape) - spatial - 1]
    transposed = "transpose" in str(node.target)
    if transposed:
        old_per_group = x.before[len(x.before) - spatial - 1] // argument(node, "groups")
        line = x.line(len(x.shape) - spatial - 1)
        groups = argument(node, "groups")
        if line is not None:
            groups = int(line.view(groups, old_per_group).any(1).sum())
        set_argument(copy, "groups", groups)
        return
    set_argument(copy, "groups", channels // weight.shape[1])


@rewrites("group_norm")
def _group_norm(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    line = run.line(main_input(node), 1)
    groups = argument(node, "num_groups")
    if line is not None and groups > 1:
        set_argument(copy, "num_groups", int(line.view(groups, -1).any(1).sum()))


@rewrites("layer_norm", "rms_norm", "native_layer_norm")
def _layer_norm(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    out = run.kept(main_input(node))
    shape = list(argument(node, "normalized_shape"))
    set_argument(copy, "normalized_shape", list(out.shape[len(out.shape) - len(shape) :]))


@rewrites("scaled_dot_product_attention")
def _attention(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    """The softmax keeps its temperature although the head dimension shrinks."""
    query = run.kept(main_input(node))
    if argument(node, "scale") is None and query.before[-1] != query.shape[-1]:
        set_argument(copy, "scale", 1 / math.sqrt(query.before[-1]))


@rewrites("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    line = run.line(main_input(node), 1)
    groups = argument(node, "groups")
    if line is not None:
        set_argument(copy, "groups", int(line.view(groups, -1).any(1).sum()))


def _getitem(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    mapping = copy.args[0].meta.get("kept_outputs")  # type: ignore[union-attr]
    if mapping is not None:
        copy.update_arg(1, mapping.get(node.args[1], 0))


REWRITERS[operator.getitem] = _getitem
