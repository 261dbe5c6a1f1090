"""Weights in two parameters, a direction and a gain: where the gain can make up for what the direction loses."""

from __future__ import annotations

import operator
from collections.abc import Container

from torch import fx

WEIGHT_NORMS = ("aten::_weight_norm", "aten::_weight_norm_interface")


def is_weight_norm(node: fx.Node) -> bool:
    """Whether a node makes a weight of a direction and a gain."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.name in WEIGHT_NORMS


def normalized_axis(node: fx.Node) -> int:
    """The axis over which the norm does not run; -1 for a norm of the whole weight."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return dim  # type: ignore[return-value]


def has_own_gain(node: fx.Node, tensors: Container[str]) -> bool:
    """Whether direction and gain are tensors of the model, and the gain has no other use than this weight."""
    direction, gain = node.args[:2]
    if not isinstance(direction, fx.Node) or not isinstance(gain, fx.Node):
        return False
    if direction.name not in tensors or gain.name not in tensors:
        return False
    if any(use.target is operator.getitem and use.args[1] == 1 for use in node.users):
        return False  # the norm itself is used
    return all(
        is_weight_norm(use) and use.args[0] is direction and normalized_axis(use) == normalized_axis(node)
        for use in gain.users
    )


def own_gains(graph: fx.Graph, tensors: Container[str]) -> set[str]:
    """Placeholders of the gains of which that is true."""
    nodes = [node for node in graph.nodes if is_weight_norm(node) and has_own_gain(node, tensors)]
    return {node.args[1].name for node in nodes}  # type: ignore[union-attr]
