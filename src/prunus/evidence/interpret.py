"""Run a captured graph on real numbers, with somebody looking at the values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import Captured
from prunus.errors import ConfigError

__all__ = ["Look", "Pass", "ancestors", "last_uses"]

Look = Callable[[fx.Node, Any], None]
Replace = Callable[[fx.Node, fx.Node, Any], Any]


class Pass:
    """One graph, run batch by batch on the model's own weights, of which none is written to.

    Args:
        captured: the graph.
        needed: the nodes to run; all others are left out.
    """

    def __init__(self, captured: Captured, needed: set[fx.Node]) -> None:
        self.captured = captured
        self._nodes = [node for node in captured.graph.nodes if node in needed]
        self._last = last_uses(self._nodes)
        self._writes = any(_is_mutable(node.target) for node in self._nodes)

    def run(
        self,
        leaves: Mapping[str, Any],
        look: Look,
        replace: Replace | None = None,
        before: Look | None = None,
    ) -> list[Any]:
        """Run one batch.

        Args:
            leaves: input placeholder -> value.
            look: called with every node and its value, right after it was computed.
            replace: called for every operand, with the node that reads it; returns what the node shall read.
            before: called with a node and a reader of it, before the reader runs.

        Returns:
            The leaves of the outputs, if the output is among the nodes.
        """
        values: dict[fx.Node, Any] = {}
        for node in self._nodes:
            if node.op == "placeholder":
                values[node] = self._load(node.name, leaves)
            elif node.op == "output":
                return list(map_arg(node.args[0], values.__getitem__))
            elif node.op == "get_attr":
                values[node] = getattr(self.captured.graph.owning_module, str(node.target))
            else:
                if before is not None:
                    before(node, values)
                values[node] = self._call(node, values, replace)
            look(node, values[node])
            for done in self._last.get(node, ()):
                values.pop(done, None)
        return []

    def _call(self, node: fx.Node, values: dict[fx.Node, Any], replace: Replace | None) -> Any:
        def read(operand: fx.Node) -> Any:
            value = values[operand]
            return value if replace is None else replace(node, operand, value)

        args, kwargs = map_arg(node.args, read), map_arg(node.kwargs, read)
        try:
            return node.target(*args, **kwargs)  # type: ignore[operator]
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))
            raise ConfigError(
                f"the data cannot be run through the model: {error} (at {node.name}, operands of shape {shapes})"
            ) from error

    def _load(self, name: str, leaves: Mapping[str, Any]) -> Any:
        if name in self.captured.tensors:
            tensor = self.captured.tensors[name].detach()
            return tensor.clone() if self._writes and self.captured.kinds[name] != "parameter" else tensor
        value = leaves[name]
        return value.clone() if self._writes and isinstance(value, Tensor) else value


def ancestors(nodes: set[fx.Node]) -> set[fx.Node]:
    """These nodes, and all that they are computed from, in place as well."""
    graph_nodes = list(next(iter(nodes)).graph.nodes) if nodes else []
    writers: dict[fx.Node, list[fx.Node]] = {}
    for node in graph_nodes:
        if _is_mutable(node.target):
            for operand in node.all_input_nodes:
                writers.setdefault(operand, []).append(node)
    if writers:  # what is written in place, and through which view, is not worth following
        last = max(i for i, node in enumerate(graph_nodes) if node in nodes)
        return set(graph_nodes[: last + 1])
    found, queue = set(), list(nodes)
    while queue:
        node = queue.pop()
        if node not in found:
            found.add(node)
            queue += node.all_input_nodes
    return found


def _is_mutable(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def last_uses(nodes: list[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose values nobody needs after it."""
    done: dict[fx.Node, list[fx.Node]] = {}
    seen: set[fx.Node] = set()
    for node in reversed(nodes):
        for used in (node, *node.all_input_nodes):
            if used not in seen:
                seen.add(used)
                done.setdefault(node, []).append(used)
    return done
