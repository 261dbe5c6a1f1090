"""Weights in two parameters, a direction and a gain: the gain makes up for what the direction loses."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.structure.gains import is_weight_norm, normalized_axis
from prunus.surgery.kept import Kept

__all__ = ["keep_weights"]


def keep_weights(captured: Captured, tensors: dict[str, Tensor], kept: Mapping[fx.Node, Kept]) -> None:
    """Change the gains in `tensors` so that all weights that stay keep the values that they had.

    Args:
        captured: the model before surgery.
        tensors: placeholder name -> the small tensor.
        kept: what stays of the placeholders.
    """
    done: set[fx.Node] = set()
    for node in captured.graph.nodes:
        if not is_weight_norm(node):
            continue
        v, g = node.args[:2]
        if v not in kept or g not in kept or g in done:
            continue
        done.add(g)
        dim = normalized_axis(node)
        axes = tuple(axis for axis in range(len(kept[v].shape)) if axis != dim)
        if all(kept[v].lines[axis] is None for axis in axes):
            continue
        line = kept[v].lines[dim] if dim >= 0 else None
        before = _norm(captured.tensors[v.name], axes)
        if line is not None:
            before = before.index_select(dim, torch.nonzero(line).flatten().to(before.device))
        gain = tensors[g.name]
        ratio = (_norm(tensors[v.name], axes) / before).reshape(gain.shape)
        with torch.no_grad():
            gain.copy_(gain.double() * ratio)


def _norm(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    return torch.linalg.vector_norm(tensor.detach().double(), dim=axes, keepdim=True)
