"""Parts of a model that only training uses: the graph of an evaluation does not show them, so they were not cut."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.copying import copy_of
from prunus.capture.diagnose import first_line, place_in_model
from prunus.surgery.precision import exact_arithmetic

__all__ = ["training_failure"]


def training_failure(captured: Captured, candidate: nn.Module) -> str:
    """Why the candidate's forward fails in training mode while the original's does not; empty if it does not.

    Only tried where some parameter has no part in the graph: all others have been cut with what they meet.
    """
    used = {operand.name for node in captured.graph.nodes for operand in node.all_input_nodes}
    if all(name in used for name, kind in captured.kinds.items() if kind == "parameter"):
        return ""
    failure = _training_error(captured, candidate)
    if failure is None or captured.model is None or _training_error(captured, captured.model) is not None:
        return ""
    return (
        f"in training mode its forward also runs parts that evaluation does not show, and fails there, at "
        f"{place_in_model(failure)} ({first_line(failure)})"
    )


def _training_error(captured: Captured, model: nn.Module) -> Exception | None:
    inputs = captured.run_inputs
    args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.detach().clone(), (inputs.args, inputs.kwargs))
    with exact_arithmetic(list({tensor.device for tensor in captured.tensors.values()}), 0):
        try:
            copy_of(model).train()(*args, **kwargs)
        except Exception as error:  # noqa: BLE001  whatever the user's forward raises
            return error
    return None
