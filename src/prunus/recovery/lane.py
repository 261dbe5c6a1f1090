"""A graph run piece by piece over all batches: each layer is seen once, with everything before it in its final state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import Captured
from prunus.evidence.interpret import last_uses

__all__ = ["Lane"]


class Lane:
    """One graph and, for each batch, the values that are still needed.

    Running two lanes side by side costs one forward pass of each network over the data, whatever the number of layers that are
    looked at on the way.

    Args:
        captured: the graph.
        tensors: placeholder -> tensor. Read when a node runs, so that it may be changed until then.
        batches: for each batch, the values of the graph's inputs.
    """

    def __init__(
        self, captured: Captured, tensors: Mapping[str, Tensor], batches: Sequence[tuple[Any, ...]]
    ) -> None:
        self.nodes = list(captured.graph.nodes)
        self.at = {node: i for i, node in enumerate(self.nodes)}
        self.by_name = {node.name: node for node in self.nodes}
        self.values: list[dict[fx.Node, Any]] = []
        self._tensors = tensors
        self._owner = captured.graph.owning_module
        self._position = 0
        self._last = last_uses(self.nodes)
        self._writes = _written(captured)
        for leaves in batches:
            given = dict(zip(captured.inputs, leaves, strict=True))
            self.values.append({self.by_name[name]: _own(value) for name, value in given.items()})

    def run_to(self, node: fx.Node, *, inclusive: bool) -> None:
        """Run every batch up to a node; what ran before stays as it was."""
        stop = self.at[node] + (1 if inclusive else 0)
        if stop <= self._position:
            return
        piece = self.nodes[self._position : stop]
        with torch.no_grad():
            for values in self.values:
                for each in piece:
                    self._run(each, values)
        self._position = stop

    def read(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """A value of one batch, or a tensor of the model."""
        if node in values:
            return values[node]
        return self._tensors[node.name].detach()

    def _run(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        if node.op == "placeholder":
            # what the forward writes to is written to in a copy, one for each batch
            if node in self._writes and node.name in self._tensors:
                values[node] = self._tensors[node.name].detach().clone()
        elif node.op == "get_attr":
            values[node] = getattr(self._owner, str(node.target))
        elif node.op == "call_function":
            args, kwargs = (map_arg(a, lambda n: self.read(n, values)) for a in (node.args, node.kwargs))
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        for done in self._last.get(node, ()):
            values.pop(done, None)


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _written(captured: Captured) -> set[fx.Node]:
    """Placeholders that may be written to: buffers and constants, if any operator writes in place."""
    nodes = list(captured.graph.nodes)
    mutable = any(isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable for n in nodes)
    kinds = captured.kinds
    return {n for n in nodes if kinds.get(n.name, "parameter") != "parameter"} if mutable else set()
