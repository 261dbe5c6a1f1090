"""Run a graph on bounds: on what is known of its values whatever the inputs are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from prunus.capture import Captured, concrete, size_of
from prunus.constants.bounds import INF, Bounds, small
from prunus.constants.operators import RULES, is_mixing, mixed
from prunus.evidence.facing import kind_of
from prunus.evidence.mixable import MOVES
from prunus.structure.labels import tighten

__all__ = ["SAFE_MOVES", "bounds_of", "keeps_apart"]

SAFE_MOVES = MOVES | frozenset(
    "cat stack expand expand_as permute t constant_pad_nd pad repeat unfold numpy_T".split()
)
_ELEMENTWISE = frozenset(
    "hardswish hardswish_ hardtanh_ mish square pow prelu hardshrink softshrink logit".split()
)  # no tag
_COPYING: dict[Any, Any] = {
    torch.ops.aten.view.default: torch.reshape,
    torch.ops.aten._unsafe_view.default: torch.reshape,
}


def bounds_of(captured: Captured) -> dict[str, Bounds]:
    """Node -> bounds of its value, for values that depend on the inputs; one that is not there may be anything.

    Inputs may be anything. What depends on parameters alone has its numbers. A graph that writes to parts of its values is not
    followed.
    """
    return _Run(captured).run()


class _Run:
    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.inputs = captured.input_dependent()
        self.values: dict[fx.Node, Any] = {}

    @torch.no_grad()
    def run(self) -> dict[str, Bounds]:
        for node in self.captured.graph.nodes:
            if node.op == "call_function" and not self._plain_write(node):
                return {}
            try:
                self.values[node] = self._visit(node)
            except (
                RuntimeError,
                NotImplementedError,
                TypeError,
                ValueError,
                AttributeError,
                IndexError,
                KeyError,
            ):
                self.values[node] = None  # it may be anything, which is never wrong
            if node.op == "call_function" and _writes(node):
                self._also(node.args[0], self.values[node])  # type: ignore[arg-type]
        return {n.name: v for n, v in self.values.items() if isinstance(v, Bounds) and n in self.inputs}

    def _also(self, node: fx.Node, after: Any) -> None:
        """What was written to had one value before, and has another one after."""
        before = self.values.get(node)
        if isinstance(before, Bounds) and isinstance(after, Bounds):
            self.values[node] = before.hull(after)
        else:
            self.values[node] = None

    @staticmethod
    def _plain_write(node: fx.Node) -> bool:
        """Whether nothing is written, or elementwise to a value that is no part of another one."""
        if not _writes(node):
            return True
        written = node.args[0]
        if not isinstance(written, fx.Node) or not _is_elementwise(node):
            return False
        views = [written, *written.users]
        return written.op == "call_function" and not any(kind_of(n) in SAFE_MOVES for n in views)

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            tensor = self.captured.tensors.get(node.name)
            return None if tensor is None else tensor.detach()
        if node.op != "call_function":
            return None
        if node not in self.inputs:
            return node.target(*self._exact(node.args), **self._exact(node.kwargs))  # type: ignore[operator]
        value = node.meta.get("val")
        if isinstance(value, tuple | list) and kind_of(node) in SAFE_MOVES:
            return self._moved(node)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return None
        kind = kind_of(node)
        if kind in SAFE_MOVES:
            return self._moved(node)
        if kind in RULES:
            return RULES[kind](node, self._bound(node))
        if is_mixing(node):
            return mixed(node, self._bound(node))
        if _is_elementwise(node):
            return self._pointwise(node)
        return None

    # ------------------------------------------------------------------ arguments
    def _exact(self, arguments: Any) -> Any:
        return map_arg(arguments, lambda n: self.values[n] if n in self.values else None)

    def _read(self, node: fx.Node) -> Any:
        """Bounds of a tensor of real numbers; its content where it is a constant of others; a size as a number."""
        value, made = self.values.get(node), node.meta.get("val")
        if isinstance(value, Bounds | tuple | list):
            return value
        if isinstance(value, Tensor):
            return Bounds.exact(value) if value.is_floating_point() else value
        if isinstance(made, tuple | list):
            raise NotImplementedError("several values of which nothing is known")
        if not isinstance(made, Tensor):
            return concrete(made)
        if not made.is_floating_point() and node in self.inputs:
            return torch.zeros((), dtype=made.dtype).expand(
                size_of(node)
            )  # only rules that ignore it may read it
        return Bounds.any(size_of(node))

    def _bound(self, node: fx.Node) -> SimpleNamespace:
        schema = node.target._schema.arguments  # type: ignore[union-attr]
        found = {x.name: x.default_value for x in schema}
        found |= {x.name: map_arg(v, self._read) for x, v in zip(schema, node.args, strict=False)}
        return SimpleNamespace(**found | {k: map_arg(v, self._read) for k, v in node.kwargs.items()})

    # ------------------------------------------------------------------ families
    def _moved(self, node: fx.Node) -> Any:
        target = _COPYING.get(node.target, node.target)

        def of(end: str) -> Any:
            def read(n: fx.Node) -> Any:
                return map_ends(self._read(n), end)

            return target(*map_arg(node.args, read), **map_arg(node.kwargs, read))  # type: ignore[operator]

        low, high = of("low"), of("high")
        if isinstance(low, tuple | list):
            return tuple(Bounds(tighten(a), tighten(b)) for a, b in zip(low, high, strict=True))
        return Bounds(tighten(low), tighten(high))

    def _pointwise(self, node: fx.Node) -> Bounds:
        """Any function of single elements: known where all of its operands are."""
        read = {n: self._read(n) for n in node.all_input_nodes}
        if any(
            n in self.inputs and not isinstance(v, Bounds) and isinstance(v, Tensor) for n, v in read.items()
        ):
            raise NotImplementedError("numbers that choose, and depend on the inputs")
        known = torch.ones((), dtype=torch.bool)
        for value in read.values():
            if isinstance(value, Bounds):
                known = known & small(value.known)
        ends = map_aggregate(
            (node.args, node.kwargs), lambda x: map_ends(read[x], "low") if isinstance(x, fx.Node) else x
        )
        args, kwargs = pytree.tree_map_only(Tensor, small, ends)
        made = node.target(*args, **kwargs).double()  # type: ignore[operator]
        known = known & made.isfinite()
        ends = (torch.where(known, made, end) for end in (-INF, INF))
        return Bounds(*ends).spread(size_of(node))


def map_ends(value: Any, end: str) -> Any:
    """One end of bounds, also in sequences."""
    if isinstance(value, tuple | list):
        return type(value)(map_ends(each, end) for each in value)
    return getattr(value, end) if isinstance(value, Bounds) else value


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_elementwise(node: fx.Node) -> bool:
    return kind_of(node) in _ELEMENTWISE or torch.Tag.pointwise in getattr(node.target, "tags", ())


def keeps_apart(node: fx.Node, carried: bool) -> bool:
    """Whether channels that lie in an operand have no say in each other's places of the result.

    Args:
        node: an operator that is no contraction.
        carried: the channels lie in the result as well.
    """
    if kind_of(node) in ("sym_size", "_assert_tensor_metadata") or not node.users:
        return True
    if kind_of(node) == "batch_norm":
        return carried and not node.args[5]
    return carried and (kind_of(node) in SAFE_MOVES or _is_elementwise(node) or is_mixing(node))
