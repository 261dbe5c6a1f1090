"""Numbers that a forward takes out of constant tensors: known before the model runs."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

__all__ = ["fold_numbers"]

_ITEMS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def fold_numbers(graph: fx.Graph, tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> None:
    """Put in the numbers that `item()` takes out of constants and buffers, and what is computed from such numbers alone.

    torch.export calls each of them unknown, as for one that depends on the inputs. Buffers that the forward writes to
    are no constants.

    Args:
        graph: changed in place.
        tensors: placeholder -> tensor.
        kinds: placeholder -> `"parameter"`, `"buffer"` or `"constant"`.
    """
    fixed = {name: tensor for name, tensor in tensors.items() if kinds[name] != "parameter"}
    written = _written(graph)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), _SYMBOLIC):
            continue
        if node.target in _ITEMS:
            found = _value(node, fixed, written)
        elif not node.all_input_nodes and not isinstance(node.target, torch._ops.OpOverload):
            found = node.target(*node.args, **node.kwargs)  # type: ignore[operator]
        else:
            continue
        if isinstance(found, int | float):
            node.replace_all_uses_with(found)  # type: ignore[arg-type]  an argument like any other
            graph.erase_node(node)


def _written(graph: fx.Graph) -> set[fx.Node]:
    return {
        operand
        for node in graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        for operand in node.all_input_nodes
    }


def _value(node: fx.Node, fixed: Mapping[str, Tensor], written: set[fx.Node]) -> Any:
    """What a node amounts to; None if that depends on anything else than constants."""
    if node in written:
        return None
    if node.op == "placeholder":
        tensor = fixed.get(node.name)
        return None if tensor is None or tensor.is_meta else tensor
    if node.op != "call_function" or not _is_pure(node):
        return None
    operands = {each: _value(each, fixed, written) for each in node.all_input_nodes}
    if any(value is None for value in operands.values()):
        return None
    args, kwargs = (map_arg(a, operands.__getitem__) for a in (node.args, node.kwargs))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _is_pure(node: fx.Node) -> bool:
    if isinstance(node.target, torch._ops.OpOverload):
        schema_random = torch.Tag.nondeterministic_seeded in node.target.tags
        return not schema_random and not node.target._schema.is_mutable
    return getattr(node.target, "__module__", "") in (operator.__name__, "_operator", "math", "torch")
