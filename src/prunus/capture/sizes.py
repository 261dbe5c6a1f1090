"""Sizes of the values in a graph as plain integers."""

from typing import Any

import torch
from torch.utils import _pytree as pytree

from prunus.errors import CaptureError

__all__ = ["concrete", "is_symbolic", "size_of"]


def concrete(value: Any) -> Any:
    """Replace every symbolic number in a pytree by the number that it has for the captured inputs.

    Raises:
        CaptureError: If a number depends on the data and so has no value before the model runs.
    """
    return pytree.tree_map(_concrete_leaf, value)


def size_of(node: torch.fx.Node) -> tuple[int, ...]:
    """Shape of a node's tensor for the captured inputs.

    Raises:
        CaptureError: If the node holds no tensor, or a size of it depends on the data.
    """
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        raise CaptureError(
            f"{node.name} ({node.target}) holds {type(value).__name__}, not a tensor: it has no size."
        )
    return tuple(_concrete_leaf(size) for size in value.shape)


def is_symbolic(size: int | torch.SymInt) -> bool:
    """Whether a size is still free; torch.export also leaves symbols that it has fixed to one number."""
    return isinstance(size, torch.SymInt) and bool(size.node.expr.free_symbols)


def _concrete_leaf(value: Any) -> Any:
    if not isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return value
    hint = value.node.hint
    if hint is None:
        raise CaptureError(
            f"The size {value} depends on the data, so it is not known before the model runs. Capture a "
            "part of the model that ends before this point, for example its backbone."
        )
    return hint
