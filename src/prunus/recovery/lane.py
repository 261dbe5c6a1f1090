"""A graph run piece by piece over all batches: each layer is seen once, with everything before it in its final state."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import Captured
from prunus.evidence.interpret import last_uses
from prunus.recovery.store import Store, Values
from prunus.surgery.recipe import bound_arguments

__all__ = ["Lane"]


class Lane:
    """One graph and, for each batch, the values that are still needed.

    Running two lanes side by side costs one forward pass of each network over the data, whatever the number of layers that are
    looked at on the way.

    Args:
        captured: the graph.
        tensors: placeholder -> tensor. Read when a node runs, so that it may be changed until then.
        batches: for each batch, the values of the graph's inputs.
        folder: for values that do not fit into memory; None keeps all there.
        resident: how many batches stay in memory all the same.
    """

    def __init__(
        self,
        captured: Captured,
        tensors: Mapping[str, Tensor],
        batches: Sequence[tuple[Any, ...]],
        folder: Path | None = None,
        resident: int = 0,
    ) -> None:
        self.nodes = list(captured.graph.nodes)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self.by_name = {node.name: node for node in self.nodes}
        self._tensors = tensors
        self._owner = captured.graph.owning_module
        self._last = last_uses(self.nodes)
        self._mutable = any(_writes(node) for node in self.nodes)
        self._written = _written(self.nodes)
        given = [dict(zip(captured.inputs, leaves, strict=True)) for leaves in batches]
        named = [{self.by_name[name]: value for name, value in each.items()} for each in given]
        self._store = Store(named, folder, resident)
        self._positions = [0] * len(batches)
        self._changes: dict[fx.Node, Callable[[Tensor], Tensor]] = {}

    @contextmanager
    def batch(self, index: int, node: fx.Node, *, inclusive: bool) -> Iterator[Values]:
        """One batch, run up to a node; what ran before stays as it was."""
        stop = self.at[node] + (1 if inclusive else 0)
        values, start = self._store.take(index), self._positions[index]
        try:
            if start < stop:
                self._run_piece(self.nodes[start:stop], values, index, first=start == 0)
                self._positions[index] = stop
            yield values
        finally:
            self._store.put(index, values, changed=start < stop)

    def change(self, node: fx.Node, how: Callable[[Tensor], Tensor]) -> None:
        """Let all that reads a value from now on read another one, as if an earlier layer had made it."""
        self._changes[node] = how

    def read(self, node: fx.Node, values: Values) -> Any:
        """A value of one batch, or a tensor of the model."""
        if node in values:
            how = self._changes.get(node)
            return values[node] if how is None else how(values[node])
        return self._tensors[node.name].detach()

    def _run_piece(self, nodes: Sequence[fx.Node], values: Values, index: int, first: bool) -> None:
        if first and (self._mutable or self._store.spills(index)):
            # the caller's own tensors are never written to; and a file would get all that one of them is a part of
            values.update({n: v.clone() for n, v in values.items() if isinstance(v, Tensor)})
        with torch.no_grad():
            for node in nodes:
                self._run(node, values)

    def _run(self, node: fx.Node, values: Values) -> None:
        if node.op == "placeholder":
            # what the forward writes to is written to in a copy, one for each batch; all else may still be repaired
            if node in self._written and node.name in self._tensors:
                values[node] = self._tensors[node.name].detach().clone()
        elif node.op == "get_attr":
            values[node] = getattr(self._owner, str(node.target))
        elif node.op == "call_function":
            args, kwargs = (map_arg(a, lambda n: self.read(n, values)) for a in (node.args, node.kwargs))
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        for done in self._last.get(node, ()):
            values.pop(done, None)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _written(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """Placeholders that a graph writes to, in place or through views."""
    sources: dict[fx.Node, set[fx.Node]] = {}  # value -> placeholders whose memory it may lie in
    found: set[fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder":
            sources[node] = {node}
        elif isinstance(node.target, torch._ops.OpOverload):
            arguments = bound_arguments(node)
            for argument in node.target._schema.arguments:
                if argument.alias_info is None or argument.name not in arguments:
                    continue
                reached = _sources(arguments[argument.name], sources)
                sources[node] = sources.get(node, set()) | reached
                if argument.alias_info.is_write:
                    found |= reached
        else:  # an element of several results, say
            sources[node] = _sources((node.args, node.kwargs), sources)
    return found


def _sources(value: Any, sources: Mapping[fx.Node, set[fx.Node]]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    map_arg(value, lambda node: found.update(sources.get(node, ())))
    return found
