"""Export a module with free sizes where the model allows it."""

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from prunus.capture.batch import batch_size, batched_tensors, describe_inputs, with_batch
from prunus.capture.diagnose import first_line, place_in_model
from prunus.capture.dynamic import Dynamic, batch_axes, wanted_axes
from prunus.capture.forgetting import forget_sizes
from prunus.capture.guards import fixed_sizes, keep_guards_of_code, short_sizes
from prunus.capture.outputs import only_plain_outputs
from prunus.capture.preserve import buffers_kept
from prunus.capture.quiet import quiet
from prunus.capture.shapes import Axis, shapes_of
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
        reasons: An axis that was to be free and is fixed -> why.
        asked: The axes that were to be free in this export.
    """

    program: ExportedProgram
    run_inputs: Inputs
    static_reason: str | None
    left_out: tuple[str, ...]
    reasons: Mapping[Axis, str] = MappingProxyType({})
    asked: frozenset[Axis] = frozenset()


def export_module(model: nn.Module, example: Inputs, dynamic: Dynamic = "auto") -> Export:
    """Export a module that is in evaluation mode.

    Args:
        model: The module.
        example: Inputs with which it runs.
        dynamic: Which axes of the inputs are to be free, see `Dynamic`. Those that cannot be are fixed, with a reason; axes
            that are asked for by name have to be free.

    Raises:
        ConfigError: If `dynamic` makes no sense for these inputs.
        CaptureError: If the inputs do not fit the model's forward, the forward cannot be exported, or it fixes an axis
            that was asked for by name.
    """
    wanted, batch = wanted_axes(dynamic, model, example), batch_axes(example)
    why = None
    with only_plain_outputs(model) as left_out, _plain_surroundings():
        for free in dict.fromkeys((wanted, wanted & batch, *_without_batch(wanted, example), frozenset())):
            try:
                program, run_inputs, fixed = _exported_free(model, example, free)
            except _FailedError as failed:
                why = str(failed)
                continue
            break
        else:
            raise AssertionError("an export without free axes ends with a program or an error")
    if wanted - free:
        fixed = {**dict.fromkeys(wanted - free, why or "the model cannot be exported with it free"), **fixed}
    if isinstance(dynamic, Mapping | list | tuple) and fixed:
        (leaf, axis), reason = next(iter(fixed.items()))
        name = list(program.graph_signature.user_inputs)[leaf]
        raise CaptureError(
            f"Axis {axis} of the input {name} cannot be free: {reason}. Leave it out of dynamic."
        )
    static = [reason for axis, reason in fixed.items() if axis in batch]
    if not batch:
        static = ["no input tensor has a dimension that could be a batch"]
    elif not wanted & batch:
        static = ["a dynamic batch was not asked for"]
    elif not static:
        shapes = shapes_of(program, [str(name) for name in program.graph_signature.user_inputs], fixed)
        leaves = pytree.tree_leaves((run_inputs.args, run_inputs.kwargs))
        sizes = [tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in leaves]
        static = [why for why in (shapes.settled_batch(sizes),) if why]
    return Export(program, run_inputs, next(iter(static), None), tuple(left_out), fixed, free)


def _without_batch(wanted: frozenset[Axis], example: Inputs) -> list[frozenset[Axis]]:
    """Where one sample is given, two may be what the forward cannot take."""
    return [wanted - batch_axes(example)] if batch_size(example) == 1 else []


class _FailedError(Exception):
    """The model cannot be exported with these axes free."""


def _exported_free(
    model: nn.Module, example: Inputs, free: frozenset[Axis]
) -> tuple[ExportedProgram, Inputs, dict[Axis, str]]:
    """Export with some axes free: the program, its inputs, and why some of the axes are fixed all the same.

    Raises:
        _FailedError: If that does not work.
        CaptureError: If it does not work without free axes either.
    """
    leaves = pytree.tree_leaves((example.args, example.kwargs))
    # a plan for another architecture may name axes that these inputs do not have
    free = frozenset((leaf, axis) for leaf, axis in free if leaf < len(leaves) and axis < _rank(leaves[leaf]))
    if not free:
        return _export_static(model, example), example, {}
    batch = batch_axes(example)
    # sizes of 1 are broadcast, so torch could not tell what follows the batch
    doubled = batch_size(example) == 1 and bool(free & batch)
    run_inputs = with_batch(example, 1, 2) if doubled else example
    shapes, leaves = ShapesCollection(), pytree.tree_leaves((run_inputs.args, run_inputs.kwargs))
    for leaf, tensor in enumerate(leaves):
        if isinstance(tensor, Tensor):
            shapes[tensor] = {axis: Dim.AUTO for axis in range(tensor.dim()) if (leaf, axis) in free}
    try:
        with quiet(), _any_size(), short_sizes():
            program = torch.export.export(model, run_inputs.args, run_inputs.kwargs, dynamic_shapes=shapes)
    except CaptureError:
        raise
    except GuardOnDataDependentSymNode as error:
        # the values of tensors decide, whatever the sizes
        raise _explained(model, example, error) from error
    except Exception as error:
        place = place_in_model(error)
        raise _FailedError(
            f"export with free sizes failed: {first_line(error)}" + (f" ({place})" if place else "")
        ) from error
    fixed = fixed_sizes(program, free)
    if doubled and any(axis in fixed for axis in free & batch):
        # the forward fixes the batch: then to the size that the user has
        fixed = {axis: why.replace("needs 2 there", "needs 1 there") for axis, why in fixed.items()}
        rest = frozenset(axis for axis in free if axis not in fixed) - batch
        program, run_inputs, more = _exported_free(model, example, rest)
        return program, run_inputs, {**more, **fixed}
    keep_guards_of_code(program)
    forget_sizes(program, own=True)
    return program, run_inputs, fixed


def _rank(leaf: object) -> int:
    return leaf.dim() if isinstance(leaf, Tensor) else 0


@contextlib.contextmanager
def _any_size() -> Iterator[None]:
    """Let torch not take sizes of 0 and 1 for impossible: what a forward makes of them becomes a guard.

    Sizes that have to be equal for a view to be possible are then found to be so (the batches of two inputs).
    """
    config: Any = importlib.import_module("torch.fx.experimental._config")
    options = {"backed_size_oblivious": True, "unify_view_symbols_bso_meta": True}
    with config.patch({name: value for name, value in options.items() if hasattr(config, name)}):
        yield


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
            with quiet():
                program = torch.export.export(module, example.args, dynamic_shapes=shapes)
        except Exception:  # noqa: BLE001  torch.export raises whatever the model's own code raises
            program = _export_static(module, example)
    return Export(program, example, "the model was captured in parts", tuple(left_out))


def _export_static(model: nn.Module, example: Inputs) -> ExportedProgram:
    try:
        with quiet():
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
        stack.enter_context(_without_inference_mode())
        yield


@contextlib.contextmanager
def _without_inference_mode() -> Iterator[None]:
    """Let a forward that opens `torch.inference_mode` be followed: it changes no numbers, and no export gets through it."""
    kind = torch.inference_mode
    enter, leave = kind.__enter__, kind.__exit__
    kind.__enter__, kind.__exit__ = (lambda self: None), (lambda self, *error: None)  # type: ignore[assignment]
    try:
        yield
    finally:
        kind.__enter__, kind.__exit__ = enter, leave
