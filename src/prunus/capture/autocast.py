"""Write out the casts that autocast makes on the way into operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

__all__ = ["Autocast", "write_casts"]


class Autocast(NamedTuple):
    """What a region of a graph is computed under.

    Attributes:
        device: The kind of device whose tensors are cast.
        dtype: The lower precision.
    """

    device: str
    dtype: torch.dtype


def write_casts(node: fx.Node, region: Autocast) -> bool:
    """Cast the operands of a call that was captured under autocast, so that it computes the same outside of it.

    Which operators are cast, and to what, differs from device to device and from release to release. The types that
    the capture saw coming out tell which it was: as given, all in the lower precision, or all in float32.

    Returns:
        Whether one of them gives those types; if not, the call is left as it was.
    """
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable or not node.all_input_nodes:
        return True  # autocast leaves what is written to alone
    wanted = _dtypes(node.meta.get("val"))
    for dtype in (None, region.dtype, torch.float32):
        cast = [x for x in node.all_input_nodes if dtype is not None and _is_cast(x, region, dtype)]
        if (cast or dtype is None) and _outcome(node, dict.fromkeys(cast, dtype)) == wanted:
            _insert(node, cast, dtype)
            return True
    return False


def _is_cast(operand: fx.Node, region: Autocast, dtype: torch.dtype) -> bool:
    value = operand.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype not in (torch.float64, dtype)
        and value.device.type == region.device
    )


def _outcome(node: fx.Node, casts: dict[fx.Node, Any]) -> list[torch.dtype] | None:
    """The types that the call returns when some operands are cast; None where it does not run."""

    def operand(x: fx.Node) -> Any:
        value = x.meta.get("val")
        return value.to(casts[x]) if x in casts and isinstance(value, Tensor) else value

    call: Callable[..., Any] = node.target  # type: ignore[assignment]
    try:
        with torch.no_grad():
            return _dtypes(call(*map_arg(node.args, operand), **map_arg(node.kwargs, operand)))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return None


def _dtypes(value: Any) -> list[torch.dtype]:
    return [leaf.dtype for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _insert(node: fx.Node, operands: list[fx.Node], dtype: Any) -> None:
    for operand in operands:
        with node.graph.inserting_before(node):
            cast = node.graph.call_function(torch.ops.aten.to.dtype, (operand, dtype))
        cast.meta = {**node.meta, "val": operand.meta["val"].to(dtype)}
        node.replace_input_with(operand, cast)
