"""Which dimension of the inputs is the batch, and inputs with another batch size."""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.inputs import Inputs

__all__ = ["batch_size", "batched_tensors", "describe_inputs", "with_batch"]


def batch_size(inputs: Inputs) -> int | None:
    """Size of dim 0 of the first input tensor that has dimensions; None without one, or when it is empty."""
    for leaf in pytree.tree_leaves((inputs.args, inputs.kwargs)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0]) or None
    return None


def batched_tensors(inputs: Inputs, size: int) -> list[Tensor]:
    """The input tensors whose dim 0 has this size."""
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size]


def with_batch(inputs: Inputs, size: int, wanted: int) -> Inputs:
    """Bring every input tensor whose dim 0 has one size to another, by repeating or leaving out rows."""

    def resized(leaf: Any) -> Any:
        if not (isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size):
            return leaf
        rows = torch.arange(wanted, device=leaf.device) % size
        return leaf.detach().index_select(0, rows)

    args, kwargs = pytree.tree_map(resized, (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs)


def describe_inputs(inputs: Inputs) -> str:
    """One line with shapes, dtypes and devices, for messages."""

    def one(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}"
        text = repr(leaf)
        return text if len(text) <= 60 else type(leaf).__name__

    parts = [one(leaf) for leaf in pytree.tree_leaves(inputs.args)]
    for name, value in inputs.kwargs.items():
        parts.append(f"{name}: " + ", ".join(one(leaf) for leaf in pytree.tree_leaves(value)))
    return "; ".join(parts) or "none"
