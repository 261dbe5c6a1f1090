"""Export a module with a dynamic batch where the model allows it."""

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from prunus.capture.diagnose import first_line, place_in_model
from prunus.errors import CaptureError
from prunus.inputs import Inputs

__all__ = ["export_module"]


def export_module(model: nn.Module, example: Inputs) -> tuple[ExportedProgram, Inputs, str | None]:
    """Export a module that is in evaluation mode.

    Returns:
        The program, the inputs it was exported with, and why the batch is not dynamic (None when it is).

    Raises:
        CaptureError: If the inputs do not fit the model's forward, or the forward cannot be exported.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        # the fused encoder kernel hides a whole layer in one call
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        return _export(model, example)


def _export(model: nn.Module, example: Inputs) -> tuple[ExportedProgram, Inputs, str | None]:
    size = batch_size(example)
    if size is None:
        reason = "no input tensor has a dimension that could be a batch"
    else:
        run_inputs = repeat_batch(example, size) if size == 1 else example
        shapes = ShapesCollection()
        for tensor in _batched(run_inputs, max(size, 2)):
            shapes[tensor] = {0: Dim.AUTO}
        try:
            program = torch.export.export(model, run_inputs.args, run_inputs.kwargs, dynamic_shapes=shapes)
        except Exception as error:  # noqa: BLE001  torch.export raises whatever the model's own code raises
            place = place_in_model(error)
            reason = f"export with a dynamic batch failed with {first_line(error)}" + (f" ({place})" if place else "")
        else:
            if any(isinstance(d, torch.SymInt) for d in _first_sizes(program)):
                return program, run_inputs, None
            reason = "the model's forward fixes the batch size, for example by using it as a Python number"
            if run_inputs is example:
                return program, example, reason
    try:
        return torch.export.export(model, example.args, example.kwargs), example, reason
    except Exception as error:  # noqa: BLE001
        raise _explained(model, example, error) from error


def batch_size(example: Inputs) -> int | None:
    """Size of dim 0 of the first input tensor that has dimensions and is not empty; None without one."""
    for leaf in pytree.tree_leaves((example.args, example.kwargs)):
        if isinstance(leaf, Tensor) and leaf.dim():
            return int(leaf.shape[0]) or None
    return None


def repeat_batch(example: Inputs, size: int) -> Inputs:
    """Repeat every input tensor whose dim 0 has this size once: torch.export takes a size of 1 for a constant."""

    def repeat(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size else leaf

    args, kwargs = pytree.tree_map(repeat, (example.args, example.kwargs))
    return Inputs(args, kwargs)


def _batched(inputs: Inputs, size: int) -> list[Tensor]:
    leaves = pytree.tree_leaves((inputs.args, inputs.kwargs))
    return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == size]


def _first_sizes(program: ExportedProgram) -> list[int | torch.SymInt]:
    users = set(program.graph_signature.user_inputs)
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in users and isinstance(value, Tensor) and value.dim():
            return [value.shape[0]]
    return []


def _explained(model: nn.Module, example: Inputs, error: Exception) -> CaptureError:
    try:
        with torch.no_grad():
            model(*example.args, **example.kwargs)
    except Exception as own:  # noqa: BLE001  the model's forward may raise anything
        return CaptureError(
            f"The example inputs do not fit the model's forward: {first_line(own)}\n"
            f"  at {place_in_model(own) or type(model).__name__}\n"
            f"  inputs: {describe(example)}\n"
            "Pass example inputs with which model(...) itself runs."
        )
    return CaptureError(
        f"The model runs, but its forward cannot be captured: {first_line(error)}\n"
        f"  at {place_in_model(error) or type(model).__name__}\n"
        "torch.export cannot follow Python code that depends on the values of tensors, or that leaves torch. Rewrite "
        "that line with tensor operations (torch.where instead of if), or capture the submodule that does the "
        "computing (for example model.backbone) with the inputs that it gets."
    )


def describe(inputs: Inputs) -> str:
    """One line with shapes and dtypes of example inputs."""

    def one(leaf: Any) -> str:
        if isinstance(leaf, Tensor):
            return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')} on {leaf.device}"
        return repr(leaf)

    parts = [one(leaf) for leaf in pytree.tree_leaves(inputs.args)]
    parts += [f"{k}: " + ", ".join(one(leaf) for leaf in pytree.tree_leaves(v)) for k, v in inputs.kwargs.items()]
    return "; ".join(parts) or "none"
