"""Numbers that a forward takes out of constant tensors: known before the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from prunus.capture.arithmetic import calculated
from prunus.capture.reading.operators import operator_problem

__all__ = ["fold_numbers"]

_ITEMS = (torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SELECTING = (torch.ops.aten.nonzero.default, torch.ops.aten.masked_select.default)
_FEW = 2**16  # values that an operator may make of fewer


def fold_numbers(graph: fx.Graph, tensors: Mapping[str, Tensor], kinds: Mapping[str, str]) -> None:
    """Put in the numbers that `item()` takes out of constants and buffers, and what is computed from such numbers alone.

    torch.export calls each of them unknown, as for one that depends on the inputs. Buffers that the forward writes to
    are no constants. Only torch's own operators are computed that return what they compute and do nothing else, and only where
    that is no larger than what goes into it.

    Args:
        graph: changed in place.
        tensors: placeholder -> tensor.
        kinds: placeholder -> `"parameter"`, `"buffer"` or `"constant"`.

    Raises:
        CaptureError: A number is no size.
    """
    fixed = {name: tensor for name, tensor in tensors.items() if kinds[name] != "parameter"}
    written = _written(graph)
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(node.meta.get("val"), _SYMBOLIC):
            continue
        if node.target in _ITEMS:
            found = _value(node, fixed, written)
        elif not node.all_input_nodes and not isinstance(node.target, torch._ops.OpOverload):
            found = calculated(node.target, node.args)  # type: ignore[arg-type]
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
    if node.op != "call_function":
        return None
    operands = {each: _value(each, fixed, written) for each in node.all_input_nodes}
    if any(value is None for value in operands.values()):
        return None
    args, kwargs = (map_arg(a, operands.__getitem__) for a in (node.args, node.kwargs))
    if not isinstance(node.target, torch._ops.OpOverload):
        return calculated(node.target, args)  # type: ignore[arg-type]
    if not _is_pure(node.target) or not _is_small(node.target, args, kwargs):
        return None
    try:
        with torch.no_grad():
            return node.target(*args, **kwargs)  # type: ignore[call-arg]
    except (RuntimeError, ValueError, IndexError, TypeError):
        return None  # the graph says so again when it runs


def _is_pure(target: torch._ops.OpOverload) -> bool:
    random = torch.Tag.nondeterministic_seeded in target.tags
    harmless = target.namespace == "aten" and operator_problem(f"torch.ops.{target}") is None
    return harmless and not random and not target._schema.is_mutable


def _is_small(target: torch._ops.OpOverload, args: Any, kwargs: Any) -> bool:
    """Whether what an operator makes is no larger than its operands, found without computing it."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    limit = max(_FEW, sum(tensor.numel() for tensor in tensors))
    if target in _ITEMS or target in _SELECTING:
        return True
    with FakeTensorMode(allow_fallback_kernels=False) as mode:
        try:
            found = target(*_faked(args, mode), **_faked(kwargs, mode))
        except Exception:  # noqa: BLE001  it depends on values, or cannot be computed at all
            return False
    made = [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]
    return sum(tensor.numel() for tensor in made) <= limit


def _faked(values: Any, mode: FakeTensorMode) -> Any:
    return pytree.tree_map_only(Tensor, mode.from_tensor, values)
