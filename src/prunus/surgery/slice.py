"""Make the small graph: slice every parameter and buffer, rewrite every constant, drop what nothing uses."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured
from prunus.structure import Structure
from prunus.surgery import rewriters as rewriters  # registers them
from prunus.surgery.gains import keep_weights
from prunus.surgery.kept import Kept
from prunus.surgery.rewrite import Rewriting
from prunus.surgery.unpack import is_irregular


def slice_graph(structure: Structure, keep: np.ndarray) -> Captured:
    """The captured model with only what `keep` (labels,) says.

    Parameters are new objects with the old names, `requires_grad`, dtype and device; the original ones are not touched.
    """
    captured = structure.captured
    run = Rewriting(structure.values, torch.from_numpy(np.ascontiguousarray(keep)))
    run.run(captured.graph, [pack for pack in structure.packs if is_irregular(pack, keep)])
    tensors, names, kinds = dict(captured.tensors), dict(captured.names), dict(captured.kinds)
    for node in captured.graph.nodes:
        if node.op == "placeholder" and node.name in tensors:
            tensors[node.name] = sliced(tensors[node.name], run.kept(node))
    placeholders = [node for node in captured.graph.find_nodes(op="placeholder") if node.name in tensors]
    keep_weights(captured, tensors, {node: run.kept(node) for node in placeholders})
    taken = {*names.values(), *(alias for every in captured.aliases.values() for alias in every)}
    for name, tensor in run.constants.items():
        tensors[name], names[name], kinds[name] = tensor, _free(name, taken), "constant"
    run.graph.eliminate_dead_code(is_impure_node=_is_impure)
    run.graph.lint()
    return dataclasses.replace(captured, graph=run.graph, tensors=tensors, names=names, kinds=kinds)


def sliced(tensor: Tensor, what: Kept) -> Tensor:
    """The kept positions of a parameter or buffer."""
    if not what.changed:
        return (
            tensor.detach().clone()
            if not isinstance(tensor, nn.Parameter)
            else _parameter(tensor, tensor.detach().clone())
        )
    small = tensor.detach()
    for axis, line in enumerate(what.lines):
        if line is not None:
            small = small.index_select(axis, torch.nonzero(line).flatten().to(small.device))
    small = small.clone() if small.data_ptr() == tensor.data_ptr() else small
    return _parameter(tensor, small) if isinstance(tensor, nn.Parameter) else small


def _parameter(like: nn.Parameter, data: Tensor) -> nn.Parameter:
    return nn.Parameter(data, requires_grad=like.requires_grad)


def _free(name: str, taken: set[str]) -> str:
    """The name, or a longer one where the model has it: a model that was cut before has such constants."""
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _is_impure(node: fx.Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    schema = getattr(node.target, "_schema", None)
    return bool(schema is not None and schema.is_mutable)
