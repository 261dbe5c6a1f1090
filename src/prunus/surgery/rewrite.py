"""Rewrite the constants of a graph for the positions that stay.

Shapes, bounds, widths, group counts: every constant that belongs to a labelled axis is recomputed from the labels that are
left along it. One small function per operator family (`rewriters`); operators without one need no change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.structure.packs import Pack
from prunus.structure.tables import TAKEN, WHOLE, is_table
from prunus.structure.value import Value
from prunus.surgery.kept import kept, shaped
from prunus.surgery.unpack import skipped, unpack

aten = torch.ops.aten
Rewriter = Callable[["Rewriting", fx.Node, fx.Node], None]
REWRITERS: dict[Any, Rewriter] = {}


def rewrites(*names: str) -> Callable[[Rewriter], Rewriter]:
    """Register a rewriter for all overloads of the named aten operators, or for `library::name`."""

    def register(function: Rewriter) -> Rewriter:
        for name in names:
            if "::" in name:
                REWRITERS[name] = function
            elif hasattr(aten, name):
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
        first = next(iter(self.graph.nodes), None)
        with self.graph.inserting_before(first) if first is not None else self.graph.inserting_after():
            node = self.graph.placeholder(f"c_{name}_kept")
        node.meta["val"] = tensor
        self.constants[node.name] = tensor
        return node

    def run(self, graph: fx.Graph, packs: list[Pack]) -> fx.Graph:
        """Copy the graph, with constants for what stays; `packs` are taken apart."""
        for (
            node
        ) in graph.nodes:  # what rewriters add takes none of these names: later stages match nodes by them
            self.graph._graph_namespace.create_name(node.name, None)
        replaced, self.graph.owning_module = skipped(packs), graph.owning_module
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
        copy.name = copy.name if self.suffix else node.name
        copy.meta = {**node.meta, "origin": node.name}
        self.new[node] = copy
        if is_table(node, lambda n: self.values[n.name]):
            self._take(node, copy)
            return
        if node.op == "call_function":
            rewriter = REWRITERS.get(node.target) or REWRITERS.get(
                getattr(getattr(node.target, "_schema", None), "name", "")
            )
            if rewriter is not None and self._touched(node):
                rewriter(self, node, copy)
        if node.op != "output":
            copy.meta["val"] = shaped(node.meta.get("val"), self.kept(node))

    def _take(self, node: fx.Node, copy: fx.Node) -> None:
        """Take what stays from a table that the graph counts out."""
        for axis, line in enumerate(self.kept(node).lines):
            if line is None:
                continue
            source = self.new[node]
            source.meta.pop(TAKEN, None)
            source.meta[WHOLE] = True
            places = self.constant(torch.nonzero(line).flatten(), f"{node.name}_{axis}")
            taken = self.graph.call_function(aten.index_select.default, (source, axis, places))
            shape = list(source.meta["val"].shape)
            shape[axis] = int(line.sum())
            meta = torch.empty(shape, dtype=source.meta["val"].dtype, device="meta")
            taken.meta = {**source.meta, "val": meta, TAKEN: True}
            self.new[node] = taken

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


def set_all(node: fx.Node, args: tuple[Any, ...]) -> None:
    """Replace all arguments."""
    node.args = args
    node.kwargs = {}
