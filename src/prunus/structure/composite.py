"""Operators without a rule that are made of others: their parts take their place in the graph.

Everything behind (rules, surgery, the masked reference, costs) then sees operators that it knows.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import decomposition_table
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from prunus.capture import Captured
from prunus.structure.rules import rule_of
from prunus.structure.rules.contraction import is_plain

__all__ = ["with_parts"]

_log = logging.getLogger(__name__)


def with_parts(captured: Captured) -> Captured:
    """The same model, where calls of operators without a rule that torch can take apart are replaced by their parts.

    A call stays as it is, and is named in the report, where one of its parts has no rule either.
    """
    if not any(_may_be_taken_apart(node) for node in captured.graph.nodes):
        return captured
    owner = captured.graph.owning_module
    graph = fx.Graph(owning_module=owner if owner is not None else nn.Module())  # type: ignore[arg-type]
    results = graph.graph_copy(captured.graph, {})
    graph.output(results).meta = dict(captured.graph.output_node().meta)
    for node in list(graph.nodes):
        parts = _parts(node) if _may_be_taken_apart(node) else None
        if parts is not None:
            _put(graph, node, parts)
    graph.lint()
    return captured.with_(graph=graph)


def _is_known(target: Any) -> bool:
    return rule_of(target) is not None or torch.Tag.pointwise in target.tags


def _may_be_taken_apart(node: fx.Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not node.all_input_nodes or target._schema.is_mutable:
        return False
    if target is torch.ops.aten.einsum.default:
        return not is_plain(str(node.args[0]))
    if _is_known(target) or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    return target._can_decompose() or target in decomposition_table


def _parts(node: fx.Node) -> fx.Graph | None:
    """The graph of what the call does, one placeholder for each operand; None where it cannot be followed either."""
    operands = node.all_input_nodes

    def call(*values: Any) -> Any:
        value = dict(zip(operands, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), value.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    try:
        with torch.no_grad():
            traced = make_fx(call, decomposition_table=_table())(*[each.meta["val"] for each in operands])
    except Exception as error:  # noqa: BLE001  whatever tracing raises, the call can stay as it is
        _log.debug("%s is not taken apart: %s", node.target, error)
        return None
    return traced.graph if all(map(_can_follow, traced.graph.nodes)) else None


def _table() -> dict[Any, Callable[..., Any]]:
    """How operators that are not known are made of others."""
    return {
        op: made
        for op, made in decomposition_table.items()
        if isinstance(op, torch._ops.OpOverload) and not _is_known(op)
    }


def _can_follow(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return True
    return _is_known(node.target) or not isinstance(node.meta.get("val"), Tensor)


def _put(graph: fx.Graph, call: fx.Node, parts: fx.Graph) -> None:
    """Replace a call by its parts, which say that they are from the same line of code."""
    new: dict[fx.Node, Any] = dict(zip(parts.find_nodes(op="placeholder"), call.all_input_nodes, strict=True))
    with graph.inserting_before(call):
        for node in parts.nodes:
            if node.op == "call_function":
                new[node] = graph.node_copy(node, new.__getitem__)
                new[node].meta = {**call.meta, "val": node.meta.get("val")}
    result = map_arg(parts.output_node().args[0], new.__getitem__)
    if isinstance(result, fx.Node):
        call.replace_all_uses_with(result)
    else:
        for user in list(call.users):  # several results are read with operator.getitem only
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    graph.erase_node(call)
