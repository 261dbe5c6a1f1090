"""Sizes of the inputs that surgery would have to write into the graph as numbers, so that they cannot be free.

Bounds, splits and positions are recomputed from the labels that stay. Along an axis whose size is free (a batch that is merged
with heads, say) labels are those of the example's sizes, and so would be what is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx

from prunus.capture import is_symbolic
from prunus.capture.shapes import Axis
from prunus.structure import Structure
from prunus.structure.value import Value
from prunus.surgery import rewriters
from prunus.surgery.rewrite import REWRITERS

__all__ = ["axes_written_as_numbers"]

_SCALING = vars(rewriters.sizes)  # a size that is free is multiplied by what stays


def axes_written_as_numbers(structure: Structure) -> frozenset[Axis]:
    """The axes of the inputs that have to be fixed for the structure to be cut right."""
    symbols: set[Any] = set()
    for node in structure.captured.graph.nodes:
        rewriter = REWRITERS.get(node.target)
        if rewriter is not None and rewriter.__name__ not in _SCALING:
            for each in (node, *node.all_input_nodes):
                symbols |= _labelled(each, structure.values.get(each.name))
            symbols |= _bounds(node, structure)
    return frozenset(axis for axis, size in _input_sizes(structure) if size.node.expr.free_symbols & symbols)


def _labelled(node: fx.Node, value: Any) -> set[Any]:
    """Symbols in the sizes of a node's axes along which labels vary."""
    made = node.meta.get("val")
    parts = made if isinstance(made, list | tuple) else [made]
    values = value if isinstance(value, list | tuple) else [value]
    found: set[Any] = set()
    for tensor, each in zip(parts, values, strict=False):
        if isinstance(tensor, Tensor) and isinstance(each, Value):
            found |= _symbols(tensor.shape[axis] for axis in each.varying())
    return found


def _bounds(node: fx.Node, structure: Structure) -> set[Any]:
    """Symbols in numbers and indices of an operator that takes from an axis with labels."""
    source = structure.values.get(node.all_input_nodes[0].name) if node.all_input_nodes else None
    if not isinstance(source, Value) or not source.varying():
        return set()
    dim = next((a for a in node.args[1:2] if isinstance(a, int)), None)
    if dim is not None and len(source.shape) and dim % len(source.shape) not in source.varying():
        return set()
    found: set[Any] = set()
    for each in node.all_input_nodes[1:]:
        value = structure.values.get(each.name)
        made = each.meta.get("val")
        if isinstance(made, torch.SymInt):
            found |= _symbols([made])
        elif isinstance(value, Value) and value.data is not None and _is_index(made):
            found |= _symbols(made.shape)
    return found


def _is_index(made: Any) -> TypeGuard[Tensor]:
    """Whole numbers choose positions; masks, which are known as numbers too, choose none."""
    return isinstance(made, Tensor) and made.dtype in (torch.int64, torch.int32)


def _symbols(sizes: Iterable[Any]) -> set[Any]:
    return set().union(*(size.node.expr.free_symbols for size in sizes if is_symbolic(size)))


def _input_sizes(structure: Structure) -> Iterator[tuple[Axis, Any]]:
    captured = structure.captured
    nodes = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    for leaf, name in enumerate(captured.inputs):
        value = nodes[name].meta.get("val")
        for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            if is_symbolic(size):
                yield (leaf, axis), size
