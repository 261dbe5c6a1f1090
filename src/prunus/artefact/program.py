"""The self-contained form of a model: an exported program that any process with torch can read."""

import contextlib
import copy
import dataclasses
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.batch import batch_size, with_batch
from prunus.capture.export import Export, export_module
from prunus.capture.preserve import left_as_found
from prunus.errors import ArtefactError, CaptureError
from prunus.inputs import Inputs

__all__ = ["export_for_saving", "on_cpu", "plain"]


def export_for_saving(model: nn.Module, captured: Captured) -> Export:
    """Export a model that is on the CPU, with a dynamic batch where the capture had one.

    The program keeps small example inputs: two samples of those that the model was captured with.

    Raises:
        ArtefactError: If the model cannot be exported.
    """
    inputs = move(captured.run_inputs)
    size = batch_size(inputs)
    few = with_batch(inputs, size, 2) if captured.batch and size and size > 2 else inputs
    try:
        export = _exported(model, few)
        if export.static_reason and captured.batch and few is not inputs:
            export = _exported(model, inputs)
    except CaptureError as error:
        raise ArtefactError(
            f"The model cannot be saved, because it cannot be exported any more.\n{error}"
        ) from error
    export.program.example_inputs = (export.run_inputs.args, export.run_inputs.kwargs)
    return export


def _exported(model: nn.Module, inputs: Inputs) -> Export:
    with left_as_found(model), _plain_outputs(model):
        return export_module(model, inputs)


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


@contextlib.contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    handle = model.register_forward_hook(lambda module, args, output: plain(output))
    try:
        yield
    finally:
        handle.remove()


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
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    children, _ = pytree.SUPPORTED_NODES[kind].flatten_fn(value)
    return tuple(map(plain, children))
