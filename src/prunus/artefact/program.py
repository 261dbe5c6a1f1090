"""The self-contained form of a model: an exported program that any process with torch can read."""

import copy
import dataclasses
import io
import operator
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.batch import batch_size, with_batch
from prunus.capture.export import Export, export_module
from prunus.capture.preserve import left_as_found
from prunus.capture.shapes import Axis
from prunus.errors import ArtefactError, CaptureError
from prunus.inputs import Inputs

__all__ = ["export_for_saving", "on_cpu", "plain"]


def export_for_saving(model: nn.Module, captured: Captured, *, fixed: bool = False) -> Export:
    """Export a model that is on the CPU, with the free axes that the capture had, or none.

    The program keeps small example inputs: two samples of those that the model was captured with.

    Raises:
        ArtefactError: If the model cannot be exported.
    """
    inputs = move(captured.run_inputs)
    size = batch_size(inputs)
    few = with_batch(inputs, size, 2) if captured.batch and size and size > 2 else inputs
    try:
        free = frozenset[Axis]() if fixed else captured.shapes.free
        export = _exported(model, few, free)
        if export.static_reason and captured.batch and few is not inputs:
            export = _exported(model, inputs, free)
    except CaptureError as error:
        raise ArtefactError(
            f"The model cannot be saved, because it cannot be exported any more.\n{error}"
        ) from error
    example = (export.run_inputs.args, export.run_inputs.kwargs)
    export.program.example_inputs = example if _is_plain_data(example) else None
    return export


def _exported(model: nn.Module, inputs: Inputs, free: frozenset[Axis]) -> Export:
    with left_as_found(model):
        export = export_module(model, inputs, free)
    _name_no_classes(export.program)
    return export


def on_cpu(model: nn.Module) -> nn.Module:
    """The model itself when all of it is on the CPU, else a copy that is.

    Raises:
        ArtefactError: If a tensor has no values, or of a layout that files do not keep.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            raise ArtefactError(f"{name} is on the meta device and has no values that could be saved.")
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ArtefactError(f"{name} is {tensor.layout}; only ordinary dense tensors can be saved.")
    if all(tensor.device.type == "cpu" for tensor in tensors.values()):
        return model
    return copy.deepcopy(model).to("cpu")


def move(inputs: Inputs) -> Inputs:
    """The inputs on the CPU."""
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().cpu(), (inputs.args, inputs.kwargs))
    return Inputs(args, kwargs)


def _is_plain_data(value: Any) -> bool:
    """Whether torch writes a value in a form that can be read without unpickling classes."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    try:
        torch.load(file, weights_only=True)
    except pickle.UnpicklingError:
        return False
    return True


def _name_no_classes(program: ExportedProgram) -> None:
    """Let the program return plain dictionaries and tuples: see `plain`."""
    signature = program.module_call_graph[0].signature
    if signature is None or signature.out_spec is None:
        return
    leaves = [torch.tensor(number) for number in range(signature.out_spec.num_leaves)]
    tree = plain(pytree.tree_unflatten(leaves, signature.out_spec))
    bare_leaves, bare = pytree.tree_flatten(tree)
    if len(leaves) == len(bare_leaves) and all(map(operator.is_, leaves, bare_leaves)):
        signature.out_spec = bare


def plain(value: Any) -> Any:
    """The same tree of outputs out of dictionaries, lists and tuples alone.

    A file that names other classes could be read only where these are defined. What a mapping or a data
    class holds goes into a dictionary, anything else that torch can take apart into a tuple. Outputs that
    are built in, or torch's own, stay.
    """
    kind = type(value)
    if kind not in pytree.SUPPORTED_NODES and not isinstance(value, Mapping | tuple):
        return value
    if isinstance(value, dict) and kind in (dict, OrderedDict):
        return kind((key, plain(item)) for key, item in value.items())
    if kind in (list, tuple):
        return kind(map(plain, value))
    if kind.__module__.partition(".")[0] in ("torch", "collections"):
        return value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {name: plain(item) for name, item in named.items() if item is not None}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    children, _ = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    return tuple(map(plain, children))
