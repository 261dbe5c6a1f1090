"""Inputs that torch.export accepts and the model itself does not: fake tensors multiply what real ones cannot."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from prunus.capture.batch import describe_inputs
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.preserve import buffers_kept
from prunus.errors import CaptureError
from prunus.inputs import Inputs

__all__ = ["require_operands", "require_samples"]

_PRODUCTS = ("linear", "conv", "matmul", "mm", "bmm", "addmm", "baddbmm", "bilinear", "mv", "dot", "einsum")


def require_samples(example: Inputs) -> None:
    """Refuse example inputs without a sample.

    Raises:
        CaptureError: their batch is empty.
    """
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    first = next((leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)
    if first is not None and first.shape[0] == 0:
        raise CaptureError(
            f"The example inputs are an empty batch ({describe_inputs(example)}), which shows nothing of what the model "
            "computes: pass at least one sample."
        )


def require_operands(model: nn.Module, graph: fx.Graph, example: Inputs) -> None:
    """Where operands of a product are of different types, see whether the model itself runs on its inputs.

    Raises:
        CaptureError: it does not.
    """
    if not any(_is_mixed(node) for node in graph.nodes):
        return
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (example.args, example.kwargs))
    try:
        with torch.no_grad(), buffers_kept(model):
            model(*args, **kwargs)
    except Exception as error:
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
        raise CaptureError(
            f"The example inputs do not fit the model's forward: {first_line(error)}\n"
            f"  at {place_in_model(error) or type(model).__name__}\n"
            f"  inputs: {describe_inputs(example)}; parameters of {', '.join(kinds)}\n"
            "Pass example inputs with which model(...) itself runs."
        ) from error


def _is_mixed(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if not node.target._schema.name.removeprefix("aten::").startswith(_PRODUCTS):
        return False
    values = [each.meta.get("val") for each in node.all_input_nodes]
    tensors = [value for value in values if isinstance(value, Tensor)]
    return len({value.dtype for value in tensors}) > 1 and not any(value.is_meta for value in tensors)
