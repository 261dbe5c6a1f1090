"""The entry: whatever holds a model becomes a `Captured`."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.capture.batch import describe_inputs, with_batch
from prunus.capture.captured import Captured
from prunus.capture.diagnose import first_line
from prunus.capture.dynamic import Dynamic, wanted_axes
from prunus.capture.examples import alike, require_running, several_hint
from prunus.capture.export import Export, NotExportableError, export_module
from prunus.capture.kinds import on_the_device_of, require_ordinary
from prunus.capture.operands import require_operands, require_samples
from prunus.capture.packed import FullLengths, packs
from prunus.capture.partial import capture_parts
from prunus.capture.preserve import forget_caches, left_as_found
from prunus.capture.program import captured_from
from prunus.capture.pt2 import load_program
from prunus.capture.scripted import without_scripts
from prunus.capture.sizes import concrete, is_symbolic
from prunus.errors import CaptureError, ConfigError, PrunusError, SourceError
from prunus.inputs import Inputs, as_examples

__all__ = ["capture"]


@alone
def capture(
    source: nn.Module | ExportedProgram | str | Path, example_inputs: Any = None, dynamic: Dynamic = "auto"
) -> Captured:
    """Turn a model into one graph in which parameters are values like any other.

    A module is captured in evaluation mode and left as found: mode, hooks, attributes, gradients, random
    state. Its forward runs on fake tensors, so it needs no memory for activations; hooks that store what they
    see store fake tensors.

    Args:
        source: A module, an exported program, or the path of a ``.pt2`` file. ``DataParallel``,
            ``DistributedDataParallel`` and ``torch.compile`` wrappers are taken off.
        example_inputs: Anything that `as_examples` takes. Dim 0 of the first tensor is the batch; so is dim 0
            of every other tensor where it has the same size. Optional for a program that has kept its own.
        dynamic: Which axes of the inputs of a module are to be free: ``"auto"`` (every axis that can be), ``"batch"``,
            ``"none"``, or axes by the name of the input, ``{"x": [0, 2, 3]}``. A program's axes are as it was exported.

    Raises:
        SourceError: If the source is not, or does not hold, a model that can be captured.
        ConfigError: If the example inputs are missing or of a form that means nothing.
        CaptureError: If the inputs do not fit, the forward cannot be captured, or weights are not finite.
    """
    if isinstance(source, str | Path):
        return _capture_program(load_program(source), example_inputs)
    if isinstance(source, ExportedProgram):
        return _capture_program(source, example_inputs)
    if not isinstance(source, nn.Module):
        raise SourceError(
            f"Cannot capture a {type(source).__name__}: expected a torch.nn.Module, a "
            "torch.export.ExportedProgram or the path of a .pt2 file. For a function, put it in the "
            "forward of a module."
        )
    return _capture_module(_unwrapped(source), example_inputs, dynamic)


def _capture_module(model: nn.Module, example_inputs: Any, dynamic: Dynamic) -> Captured:
    if example_inputs is None:
        raise ConfigError(
            "A module is captured by following one call: pass the inputs of that call as example_inputs."
        )
    example, *others = as_examples(example_inputs)
    model = without_scripts(model)
    require_ordinary(model)
    for each in (example, *others):
        require_samples(each)
    example, *others = (on_the_device_of(model, each) for each in (example, *others))
    with left_as_found(model):
        try:
            export = export_module(model, example, dynamic)
            if forget_caches(model, export.program.constants.values()):
                export = _second(model, example, export, dynamic)
            captured = captured_from(export.program, model, example, export.run_inputs, export.reasons)
            require_operands(model, captured.graph, example)
        except NotExportableError as error:
            require_running(model, others)
            packed = _capture_packed(model, example, others, dynamic) if packs(model, example) else None
            return packed or _capture_parts(model, [example, *others], error, dynamic)
        except CaptureError as error:
            raise CaptureError(f"{error}{several_hint(example_inputs)}") from error.__cause__
        require_running(model, others)
    return captured.with_(
        static_reason=export.static_reason or captured.static_reason,
        left_out=export.left_out,
        others=alike(others, export.run_inputs),
        batch=None if export.static_reason else captured.batch,
        shapes=dataclasses.replace(captured.shapes, asked=export.asked),
    )


def _capture_packed(
    model: nn.Module, example: Inputs, others: list[Inputs], dynamic: Dynamic
) -> Captured | None:
    """A model that packs sequences, at full lengths; None where that is not what keeps it from being exported."""
    try:
        with FullLengths():
            export = export_module(model, example, dynamic)
        captured = captured_from(export.program, model, example, export.run_inputs, export.reasons)
    except CaptureError:
        return None
    alikes = alike(others, export.run_inputs)
    return captured.with_(
        static_reason=export.static_reason or captured.static_reason,
        left_out=export.left_out,
        others=alikes,
        packed=True,
        shapes=dataclasses.replace(captured.shapes, asked=export.asked),
    )


def _capture_parts(
    model: nn.Module, examples: list[Inputs], error: NotExportableError, dynamic: Dynamic
) -> Captured:
    def check(module: nn.Module, call: Inputs, each: Export) -> Captured:
        return captured_from(each.program, module, call, each.run_inputs)

    parts, export, few, partial = capture_parts(model, examples, error, check)
    captured = captured_from(export.program, parts, examples[0], export.run_inputs)
    # each part has a batch of its own, so there is none of the whole
    return captured.with_(
        run_inputs=few,
        static_reason=export.static_reason,
        left_out=export.left_out,
        batch=None,
        shapes=dataclasses.replace(captured.shapes, asked=wanted_axes(dynamic, model, examples[0])),
        partial=partial,
    )


def _second(model: nn.Module, example: Inputs, first: Export, dynamic: Dynamic) -> Export:
    """Export again without what the model had cached, unless it cannot do without."""
    try:
        return export_module(model, example, dynamic)
    except CaptureError:
        return first


def _unwrapped(model: nn.Module) -> nn.Module:
    while True:
        if isinstance(model, torch.jit.ScriptModule):
            raise SourceError(
                "The model is a TorchScript module, whose Python code is gone. Build the original class, "
                "load its state_dict, and pass that."
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]  what torch.compile(model) wraps
        else:
            return model


def _capture_program(program: ExportedProgram, example_inputs: Any) -> Captured:
    own = program.example_inputs
    others: list[Inputs] = []
    if example_inputs is not None:
        example, *others = as_examples(example_inputs)
    elif own is not None:
        example = Inputs(tuple(own[0]), dict(own[1]))
    else:
        raise ConfigError("The exported program has not kept example inputs: pass example_inputs.")
    _require_inference(program)
    try:
        captured = captured_from(program, None, example, example)
    except PrunusError:
        raise
    except Exception as error:
        raise SourceError(
            f"The exported program contradicts itself ({first_line(error)}). If it comes out of a "
            "file, that is damaged; else export it again."
        ) from error
    reason = captured.static_reason
    if captured.batch is None and reason is None:
        reason = "the program was exported with a fixed batch size"
    run_inputs = _run_inputs(captured, example, own)
    return captured.with_(
        example=_ordered(captured, example),
        run_inputs=run_inputs,
        static_reason=reason,
        others=alike([_ordered(captured, each) for each in others], run_inputs),
    )


def _require_inference(program: ExportedProgram) -> None:
    """Refuse a program that was exported in training mode: it does not compute one function of its inputs."""
    training = {
        torch.ops.aten.dropout.default: 2,
        torch.ops.aten.native_dropout.default: 2,
        torch.ops.aten.batch_norm.default: 5,
    }
    for node in program.graph.nodes:
        at = training.get(node.target)
        if at is None or len(node.args) <= at or node.args[at] is not True:
            continue
        if node.target is torch.ops.aten.batch_norm.default and node.args[3] is None:
            continue  # without running statistics a batch norm uses the batch's own in evaluation too
        raise CaptureError(
            f"The program was exported in training mode ({node.name} is {node.target} in training). Export "
            "model.eval()."
        )


def _ordered(captured: Captured, inputs: Inputs) -> Inputs:
    """Bring keyword arguments into the order of the program's own call.

    Raises:
        CaptureError: If the inputs have another structure than the program's.
    """
    expected = captured.in_spec.child(1).context or []
    kwargs = inputs.kwargs
    if set(expected) == set(kwargs):
        kwargs = {name: kwargs[name] for name in expected}
    ordered = Inputs(inputs.args, kwargs)
    if pytree.tree_structure((ordered.args, ordered.kwargs)) != captured.in_spec:
        raise CaptureError(
            "The example inputs do not have the form of the program's inputs.\n"
            f"  inputs: {describe_inputs(ordered)}\n  program: {captured.in_spec}"
        )
    return ordered


def _run_inputs(captured: Captured, example: Inputs, own: Any) -> Inputs:
    """Inputs of just the sizes that the program's graph was exported with.

    Raises:
        CaptureError: If the example differs in a size that is not the batch and the program has kept no
            inputs.
    """
    example = _ordered(captured, example)
    nodes = {node.name: node for node in captured.graph.find_nodes(op="placeholder")}
    for inputs in (
        example,
        _resized(captured, example),
        Inputs(tuple(own[0]), dict(own[1])) if own else None,
    ):
        if inputs is not None and not _misfits(captured, nodes, inputs, exact=True):
            wrong = _misfits(captured, nodes, example, exact=False)
            if wrong:
                raise CaptureError(f"The example inputs do not fit the exported program: {wrong[0]}.")
            return inputs
    wrong = _misfits(captured, nodes, example, exact=True)
    raise CaptureError(f"The example inputs do not fit the exported program: {wrong[0]}.")


def _resized(captured: Captured, example: Inputs) -> Inputs | None:
    if captured.batch is None:
        return None
    leaf = next(
        (leaf for leaf in pytree.tree_leaves((example.args, example.kwargs)) if isinstance(leaf, Tensor)),
        None,
    )
    if leaf is None or not leaf.dim():
        return None
    return with_batch(example, leaf.shape[0], captured.batch)


def _misfits(captured: Captured, nodes: dict[str, Any], inputs: Inputs, exact: bool) -> list[str]:
    """Where inputs differ from the graph's placeholders; a dynamic size counts only when exact."""
    wrong = []
    for name, leaf in zip(captured.inputs, pytree.tree_leaves((inputs.args, inputs.kwargs)), strict=True):
        value = nodes[name].meta.get("val")
        if not isinstance(value, Tensor):
            continue
        if not isinstance(leaf, Tensor) or leaf.dim() != value.dim() or leaf.dtype != value.dtype:
            got = f"{tuple(leaf.shape)} {leaf.dtype}" if isinstance(leaf, Tensor) else type(leaf).__name__
            wrong.append(f"{name} is {got}, expected {tuple(value.shape)} {value.dtype}")
            continue
        for dim, (size, own) in enumerate(zip(leaf.shape, value.shape, strict=True)):
            if (exact or not is_symbolic(own)) and size != concrete(own):
                wrong.append(f"dim {dim} of {name} is {size}, expected {own}")
    return wrong
