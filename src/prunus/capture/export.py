"""Export a module with a dynamic batch where the model allows it."""

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from prunus.capture.batch import batch_size, batched_tensors, describe_inputs, with_batch
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.outputs import only_plain_outputs
from prunus.capture.preserve import buffers_kept
from prunus.capture.sizes import is_symbolic
from prunus.errors import CaptureError
from prunus.inputs import Inputs

__all__ = ["Export", "NotExportableError", "export_calls", "export_module"]


class NotExportableError(CaptureError):
    """The model runs on the inputs, but torch cannot follow its forward."""


class Export(NamedTuple):
    """What exporting a module gave.

    Attributes:
        program: The exported program.
        run_inputs: The inputs that it was exported with.
        static_reason: Why the batch is not dynamic; None when it is.
        left_out: Outputs that are no tensors or constants and that the program does not return.
    """

    program: ExportedProgram
    run_inputs: Inputs
    static_reason: str | None
    left_out: tuple[str, ...]


def export_module(model: nn.Module, example: Inputs) -> Export:
    """Export a module that is in evaluation mode.

    Raises:
        CaptureError: If the inputs do not fit the model's forward, or the forward cannot be exported.
    """
    with only_plain_outputs(model) as left_out, _plain_surroundings():
        dynamic, reason = _export_dynamic(model, example)
        if dynamic is not None:
            program, run_inputs = dynamic
        else:
            program, run_inputs = _export_static(model, example), example
    return Export(program, run_inputs, reason, tuple(left_out))


def _export_dynamic(
    model: nn.Module, example: Inputs
) -> tuple[tuple[ExportedProgram, Inputs] | None, str | None]:
    """Export with a dynamic batch: the program and its inputs, or None and why that does not work."""
    size = batch_size(example)
    if size is None:
        return None, "no input tensor has a dimension that could be a batch"
    # torch.export takes sizes of 0 and 1 for constants
    run_inputs = with_batch(example, 1, 2) if size == 1 else example
    shapes = ShapesCollection()
    for tensor in batched_tensors(run_inputs, max(size, 2)):
        shapes[tensor] = {0: Dim.AUTO}
    try:
        with _quiet():
            program = torch.export.export(model, run_inputs.args, run_inputs.kwargs, dynamic_shapes=shapes)
    except CaptureError:
        raise
    except GuardOnDataDependentSymNode as error:
        # the values of tensors decide, whatever the size of the batch
        raise _explained(model, example, error) from error
    except Exception as error:  # noqa: BLE001  torch.export raises whatever the model's own code raises
        place = place_in_model(error)
        return None, f"export with a dynamic batch failed: {first_line(error)}" + (
            f" ({place})" if place else ""
        )
    fixed = [name for name, size in _sizes_of_batched(program, max(size, 2)) if not is_symbolic(size)]
    if fixed:
        return None, f"the model's forward fixes the batch size of {', '.join(fixed)}"
    return (program, run_inputs), None


def export_calls(module: nn.Module, calls: Sequence[tuple[Inputs, str | None]]) -> Export:
    """Export a module that takes a pair of positional and keyword arguments for each of several calls.

    Args:
        module: In evaluation mode.
        calls: The inputs of each call, and why its batch cannot be dynamic; None when it can.

    Raises:
        CaptureError: If the calls cannot be exported together.
    """
    example = Inputs(tuple((call.args, call.kwargs) for call, _ in calls))
    shapes = ShapesCollection()
    for call, reason in calls:
        for tensor in batched_tensors(call, batch_size(call) or 0) if reason is None else ():
            shapes[tensor] = {0: Dim.AUTO}
    with only_plain_outputs(module) as left_out, _plain_surroundings():
        try:
            with _quiet():
                program = torch.export.export(module, example.args, dynamic_shapes=shapes)
        except Exception:  # noqa: BLE001  torch.export raises whatever the model's own code raises
            program = _export_static(module, example)
    return Export(program, example, "the model was captured in parts", tuple(left_out))


def _sizes_of_batched(program: ExportedProgram, size: int) -> list[tuple[str, int | torch.SymInt]]:
    """Placeholders of the inputs whose dim 0 was made dynamic, with what came of it."""
    users = set(program.graph_signature.user_inputs)
    sizes = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in users and isinstance(value, Tensor) and value.dim():
            first = value.shape[0]
            if isinstance(first, torch.SymInt) or first == size:
                sizes.append((node.name, first))
    return sizes


def _export_static(model: nn.Module, example: Inputs) -> ExportedProgram:
    try:
        with _quiet():
            return torch.export.export(model, example.args, example.kwargs)
    except CaptureError:
        raise
    except Exception as error:
        raise _explained(model, example, error) from error


def _explained(model: nn.Module, example: Inputs, error: Exception) -> CaptureError:
    """Tell inputs that do not fit from a forward that cannot be exported, by running it."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (example.args, example.kwargs))
    try:
        with torch.no_grad(), buffers_kept(model):
            model(*args, **kwargs)
    except Exception as own:  # noqa: BLE001  the model's forward may raise anything
        return CaptureError(
            f"The example inputs do not fit the model's forward: {first_line(own)}\n"
            f"  at {place_in_model(own) or type(model).__name__}\n"
            f"  inputs: {describe_inputs(example)}{_device_of(model)}\n"
            "Pass example inputs with which model(...) itself runs."
        )
    return NotExportableError(
        f"The model runs, but its forward cannot be captured: {first_line(error)}\n"
        f"  at {place_in_model(error) or type(model).__name__}\n{_way_out(error)}"
    )


def _device_of(model: nn.Module) -> str:
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    return f"; parameters on {', '.join(devices)}" if devices else ""


def _way_out(error: Exception) -> str:
    if "register" in str(error):
        return (
            "torch cannot take the inputs apart. Register their class once, with "
            "torch.export.register_dataclass or torch.utils._pytree.register_pytree_node, or let forward "
            "take tuples and dictionaries of tensors."
        )
    return (
        "torch.export cannot follow Python code that depends on the values of tensors, or that leaves "
        "torch. Rewrite that line with tensor operations (torch.where instead of if), or capture the "
        "submodule that does the computing (for example model.backbone) with the inputs that it gets."
    )


@contextlib.contextmanager
def _plain_surroundings() -> Iterator[None]:
    """Make the graph independent of the modes that the caller happens to be in."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from printing the graph and its own traceback of errors that are reported otherwise.

    What the model's forward itself prints to stderr is passed on.
    """
    logger = logging.getLogger("torch")
    level = logger.level
    printed = io.StringIO()
    failed = True
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(printed):
            # such attributes are put back afterwards
            warnings.filterwarnings("ignore", message=r"The tensor attributes? .* assigned during export")
            yield
        failed = False
    finally:
        logger.setLevel(level)
        if printed.getvalue() and not failed:
            sys.stderr.write(printed.getvalue())
