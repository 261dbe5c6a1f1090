"""Put the graph of a region into the graph that calls it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture.autocast import write_casts

__all__ = ["AUTOCAST", "BRANCH", "JOIN", "choose", "paste"]

# what the metadata of a node says about the region that it came from
AUTOCAST = "autocast"  # calls of regions: what autocast does to their bodies, None for nothing
BRANCH = "branch"  # ((name of a cond, which of its branches), ...), outermost first
JOIN = "join"  # where the results of the branches are chosen from: the name of the cond

aten = torch.ops.aten


def paste(graph: fx.Graph, call: fx.Node, reference: Any, operands: list[Any], marks: dict[str, Any]) -> Any:
    """Copy a body before the call of a region.

    Args:
        graph: The graph with the call.
        call: The call; its marks hold for the copy too.
        reference: The ``get_attr`` node of the body.
        operands: One for each placeholder of the body.
        marks: What the metadata of the copied nodes shall say besides.

    Returns:
        The results of the body as nodes of the graph; None, and nothing is copied, when it is not of the known form.
    """
    body = _graph_module(graph, reference)
    placeholders = body.graph.find_nodes(op="placeholder") if body is not None else []
    if body is None or len(placeholders) != len(operands):
        return None
    marks = {key: call.meta[key] for key in (AUTOCAST, BRANCH) if key in call.meta} | marks
    values: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    result: Any = None
    copied: list[fx.Node] = []
    for node in body.graph.nodes:
        if node.op == "output":
            result = fx.map_arg(node.args[0], lambda n: values[n])
        elif node.op != "placeholder":
            with graph.inserting_before(call):
                values[node] = _copy(graph, body, node, values)
            values[node].meta |= marks | _place(values[node], call)
            copied.append(values[node])
            region = marks.get(AUTOCAST)
            if region is not None and not write_casts(values[node], region):
                for each in reversed(copied):
                    graph.erase_node(each)
                return None
    return result


def _graph_module(graph: fx.Graph, reference: Any) -> fx.GraphModule | None:
    owner = graph.owning_module
    if owner is None or not isinstance(reference, fx.Node) or reference.op != "get_attr":
        return None
    body = owner.get_submodule(str(reference.target))
    return body if isinstance(body, fx.GraphModule) else None


def _copy(graph: fx.Graph, body: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> fx.Node:
    if node.op != "get_attr":
        return graph.node_copy(node, values.__getitem__)
    owner: Any = graph.owning_module
    name = target = str(node.target)
    count = 0
    while hasattr(owner, name):
        count += 1
        name = f"{target}_{count}"
    setattr(owner, name, getattr(body, target))
    copy = graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy


def _place(node: fx.Node, call: fx.Node) -> dict[str, Any]:
    """Where a node of a branch was written: the code that is noted there was made by torch, so that of the condition."""
    condition = call.args[0]
    if "<eval_with_key>" not in (node.meta.get("stack_trace") or "") or not isinstance(condition, fx.Node):
        return {}
    return {key: condition.meta[key] for key in ("stack_trace", "nn_module_stack") if key in condition.meta}


def choose(graph: fx.Graph, call: fx.Node, condition: Any, yes: Any, no: Any) -> Any:
    """The results of a ``cond``, from those of its two branches."""
    if isinstance(condition, bool):
        return yes if condition else no
    marks = {key: call.meta[key] for key in (BRANCH,) if key in call.meta}
    with graph.inserting_before(call):
        condition = _scalar(graph, condition)
        condition.meta |= marks
        chosen = []
        for taken, other, value in zip(yes, no, call.meta["val"], strict=True):
            chosen.append(graph.call_function(aten.where.self, (condition, taken, other)))
            chosen[-1].meta = {**_place(call, call), **marks, "val": value, JOIN: call.name}
    return tuple(chosen)


def _scalar(graph: fx.Graph, condition: fx.Node) -> fx.Node:
    """A condition as a tensor without axes."""
    value = condition.meta["val"]
    if not isinstance(value, Tensor):
        made = graph.call_function(aten.scalar_tensor.default, (condition,), {"dtype": torch.bool})
        made.meta = {**condition.meta, "val": torch.empty((), dtype=torch.bool, device="meta")}
        return made
    if not value.dim():
        return condition
    made = graph.call_function(aten.reshape.default, (condition, []))
    made.meta = {**condition.meta, "val": value.reshape([])}
    return made
