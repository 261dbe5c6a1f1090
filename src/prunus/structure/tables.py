"""Tables of numbers that the graph counts out (frequencies, positions): constants that could as well be buffers.

Along every axis of a fixed size they get labels where whole numbers become real ones, as a buffer would. Surgery computes
the whole table as before, and takes from it what stays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import Labels, along
from prunus.structure.value import Value

# factories whose entries are all alike: any of them will do, and none needs to be taken from a whole
ALIKE = (
    "zeros",
    "ones",
    "empty",
    "full",
    "empty_strided",
    "scalar_tensor",
    "empty_permuted",
    "new_zeros",
    "new_ones",
    "new_empty",
    "new_full",
)
TAKEN = "taken_from_table"  # mark of what surgery took from a table
WHOLE = "whole_table"  # mark of the table that it was taken from


def is_table(node: fx.Node, value_of: Callable[[fx.Node], Any]) -> bool:
    """Whether a node makes real numbers of whole numbers that are known, or counts them out."""
    target, made = node.target, node.meta.get("val")
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    if not isinstance(made, Tensor) or not made.is_floating_point() or not made.dim():
        return False
    if target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags:
        return False
    if node.all_input_nodes:
        values = [value_of(used) for used in node.all_input_nodes]
        return all(isinstance(value, Value) and value.data is not None for value in values)
    return target._schema.name.removeprefix("aten::") not in ALIKE


def table(labels: Labels, node: fx.Node, shape: tuple[int, ...]) -> Value:
    """The table with labels of its own."""
    sizes = node.meta["val"].shape
    tracks = [
        along(labels.fresh(size, axis), (axis,), shape)
        for axis, size in enumerate(shape)
        if size > 1 and isinstance(sizes[axis], int)
    ]
    return Value(shape, tuple(tracks))
