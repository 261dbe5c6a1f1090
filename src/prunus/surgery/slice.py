"""Make the small graph: slice every parameter and buffer, rewrite every constant, drop what nothing uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured
from prunus.structure import Structure
from prunus.surgery.kept import Kept
from prunus.surgery.rewrite import Rewriting


def slice_graph(structure: Structure, keep: np.ndarray) -> Captured:
    """The captured model with only what `keep` (labels,) says.

    Parameters are new objects with the old names, `requires_grad`, dtype and device; the original ones are not touched.
    """
    captured = structure.captured
    run = Rewriting(structure.values, torch.from_numpy(np.ascontiguousarray(keep)))
    run.run(captured.graph)
    _set_shapes(run, captured.graph)
    tensors, names, kinds = dict(captured.tensors), dict(captured.names), dict(captured.kinds)
    for node in captured.graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            tensors[node.name] = sliced(tensors[node.name], run.kept(node))
            run.new[node].meta["val"] = run.new[node].meta["val"].new_empty(tensors[node.name].shape)
    for name, tensor in run.constants.items():
        tensors[name], names[name], kinds[name] = tensor, name, "constant"
    run.graph.eliminate_dead_code(is_impure_node=_is_impure)
    run.graph.lint()
    return dataclasses.replace(captured, graph=run.graph, tensors=tensors, names=names, kinds=kinds)


def sliced(tensor: Tensor, what: Kept) -> Tensor:
    """The kept positions of a parameter or buffer."""
    if not what.changed:
        return tensor.detach().clone() if not isinstance(tensor, nn.Parameter) else _parameter(tensor, tensor.detach().clone())
    small = tensor.detach()
    for axis, line in enumerate(what.lines):
        if line is not None:
            small = small.index_select(axis, torch.nonzero(line).flatten().to(small.device))
    small = small.clone() if small.data_ptr() == tensor.data_ptr() else small
    return _parameter(tensor, small) if isinstance(tensor, nn.Parameter) else small


def _parameter(like: nn.Parameter, data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=like.requires_grad)


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)


def _set_shapes(run: Rewriting, graph: fx.Graph) -> None:
    """Give the new nodes values of the new shapes (fake tensors, as the old ones)."""
    for node in graph.nodes:
        what = run.kept(node) if node.name in run.values else None
        if what is None or node.op == "output":
            continue
        copy = run.new[node]
        copy.meta["val"] = _shaped(node.meta.get("val"), what)


def _shaped(meta: Any, what: Any) -> Any:
    if isinstance(meta, (tuple, list)):
        return type(meta)(_shaped(m, w) for m, w in zip(meta, what, strict=False))
    if not isinstance(what, Kept) or not what.changed or not isinstance(meta, Tensor):
        return meta
    sizes = [old if a == b else b for old, a, b in zip(meta.shape, what.before, what.shape, strict=True)]
    for i, (old, a, b) in enumerate(zip(meta.shape, what.before, what.shape, strict=True)):
        if a != b and not isinstance(old, int):
            sizes[i] = old * b // a
    return meta.new_empty(sizes)
