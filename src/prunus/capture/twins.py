"""Constants of a graph that are parameters of the model after all: tensors that share all of their memory with one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["Twin", "merge_twins"]


@dataclass(frozen=True, eq=False)
class Twin:
    """A tensor that the model's code holds besides a parameter, on the same memory.

    Attributes:
        tensor: the tensor.
        axes: which axis of the parameter each of its axes is.
    """

    tensor: Tensor
    axes: tuple[int, ...]


def merge_twins(
    graph: fx.Graph,
    placeholders: dict[str, fx.Node],
    tensors: dict[str, Tensor],
    names: dict[str, str],
    kinds: dict[str, str],
) -> dict[str, tuple[Twin, ...]]:
    """Use parameters and buffers in place of constants on the same memory, in place.

    Some libraries keep the weights in objects of their own and register them besides; others take `weight.data`. Exported, such a
    weight is a parameter that nobody uses, and a constant.

    Returns:
        Placeholder -> the tensors that were found to be the same.
    """
    own: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        if kinds[name] != "constant":
            own.setdefault(_memory(tensor), []).append(name)
    twins: dict[str, tuple[Twin, ...]] = {}
    for name in [name for name, kind in kinds.items() if kind == "constant"]:
        for owner in own.get(_memory(tensors[name]), ()) if _memory(tensors[name]) else ():
            axes = _axes(tensors[owner], tensors[name])
            if axes is not None:
                _replace(graph, placeholders, name, owner, axes)
                twins[owner] = (*twins.get(owner, ()), Twin(tensors.pop(name), axes))
                del names[name], kinds[name]
                break
    return twins


def _memory(tensor: Tensor) -> Any:
    """Where a tensor's elements are; None where that is not known."""
    if tensor.is_meta or tensor.layout != torch.strided or not tensor.numel():
        return None
    return tensor.device, tensor.dtype, tensor.data_ptr(), tensor.numel()


def _axes(owner: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The axes of the owner in the order of the other tensor; None where it is no permutation of them."""
    left = list(zip(owner.shape, owner.stride(), range(owner.dim()), strict=True))
    found = []
    for size, stride in zip(other.shape, other.stride(), strict=True):
        fits = next((axis for axis in left if axis[0] == size and (axis[1] == stride or size == 1)), None)
        if fits is None:
            return None
        left.remove(fits)
        found.append(fits[2])
    return None if left else tuple(found)


def _replace(
    graph: fx.Graph, placeholders: dict[str, fx.Node], name: str, owner: str, axes: tuple[int, ...]
) -> None:
    constant, source = placeholders.pop(name), placeholders[owner]
    if axes != tuple(range(len(axes))) and constant.users:
        with graph.inserting_before(next(node for node in graph.nodes if node.op != "placeholder")):
            turned = graph.call_function(torch.ops.aten.permute.default, (source, list(axes)))
        turned.meta = {**constant.meta, "val": source.meta["val"].permute(axes)}
        source = turned
    constant.replace_all_uses_with(source)
    graph.erase_node(constant)
