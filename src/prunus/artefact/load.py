"""Read a saved result back, without the code that the model came from."""

import inspect
import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from prunus.alone import alone
from prunus.artefact.checks import MODEL, PARTS, verified
from prunus.capture import Captured, capture, size_of
from prunus.capture.diagnose import first_line
from prunus.capture.pt2 import load_program
from prunus.errors import ArtefactError, PrunusError
from prunus.files import shown
from prunus.inputs import Inputs
from prunus.surgery.lift import lift

__all__ = ["load", "open_artefact", "rebuild"]


def load(directory: str | os.PathLike[str]) -> nn.Module:
    """Build the module that ``result.save(directory)`` has written; the original code is not needed.

    The result is an ordinary module in evaluation mode: convolutions, linear layers, norms and so on are real
    layers under their original names, the state dict has the original keys, parameters are trainable where
    they were, and ``train()``, ``to()``, export and further compression work. It is called like the original
    and returns the same, with three exceptions: outputs in classes of the user's own come as dictionaries or
    tuples, outputs that torch cannot take apart (a cache of keys and values) do not come, and what evaluation
    skips (stochastic depth, auxiliary heads) is not there.

    Nothing in the folder is ever run, unpickled or computed. Before anything else, each file must be an ordinary file
    of the folder and have the size and SHA-256 that ``artefact.json`` states, which finds damage; as whoever
    changes a file can change ``artefact.json`` too, the model is then read as if it came from a stranger.
    ``model.pt2`` is an archive in which torch would also accept pickled weights, pickled objects, compiled
    libraries, names that become code, and expressions that it evaluates as Python. prunus reads it, and torch sees a graph
    only if the archive is uncompressed, all entries are of the kinds that hold plain data, example inputs can be read
    with ``weights_only=True``, every value in the JSON has its type, the graph calls operators that only compute, sizes
    are small arithmetic, and tensors claim no more memory than the file has. The graph is then run on tensors without
    values, which have to come out as the file says. Guards, which are Python code, are dropped.

    Args:
        directory: The folder that was written.

    Returns:
        The module, on the CPU.

    Raises:
        ArtefactError: If the folder is no artefact, a file is missing, cut short, changed or holds more than
            plain data, or this version of torch cannot read the model.
    """
    return open_artefact(directory)[0]


@alone
def open_artefact(directory: str | os.PathLike[str]) -> tuple[nn.Module, Captured]:
    """The module as `load` builds it, and the graph with the example inputs that it was saved with.

    Raises:
        ArtefactError: As `load`.
    """
    folder, manifest = verified(directory)
    if manifest.batch == PARTS:
        raise ArtefactError(
            f"{folder} holds no model.pt2, because {manifest.model_class} could only be captured in parts. Its own code "
            "is needed: prunus.apply(model, prunus.Plan.load(folder / 'plan.json')).model, then "
            "load_state_dict(prunus.load_weights(folder / 'model.safetensors'))."
        )
    try:
        return rebuild(folder / MODEL, manifest.model_class)
    except ArtefactError as error:
        if manifest.torch == torch.__version__:
            raise
        raise ArtefactError(
            f"{error}\nIt was written with torch {manifest.torch}, and this is torch {torch.__version__}. "
            "The plan and the weights do not depend on that: prunus.apply(model, plan) on the original, "
            "then load_state_dict(prunus.load_weights('model.safetensors'))."
        ) from error


@alone
def rebuild(path: Path, model_class: str) -> tuple[nn.Module, Captured]:
    """The module and the graph that a ``model.pt2`` holds.

    Args:
        path: The file, which is read without trust.
        model_class: Name of the original class, for display.

    Raises:
        ArtefactError: If it holds more than plain data, or cannot be read.
    """
    try:
        program = load_program(path)
        captured = capture(program, None if program.example_inputs else _example_of(program))
        module = lift(captured.with_(model=_skeleton(program, model_class)))
    except ArtefactError:
        raise
    except PrunusError as error:
        raise ArtefactError(str(error)) from error
    except Exception as error:
        raise ArtefactError(
            f"{shown(path)} holds no model that can be built ({first_line(error)})."
        ) from error
    return module, captured


def _example_of(program: ExportedProgram) -> Inputs:
    """Inputs of zeros, for a program that keeps none because they are of a class of the user's own."""
    users = set(program.graph_signature.user_inputs)
    leaves = []
    for node in program.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if node.name in users:
            is_tensor = isinstance(value, Tensor)
            leaves.append(torch.zeros(size_of(node), dtype=value.dtype) if is_tensor else value)
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)  # type: ignore[arg-type]
    return Inputs(tuple(args), dict(kwargs))


# --- what the file tells about the original module


def _skeleton(program: ExportedProgram, model_class: str) -> nn.Module:
    """A module without a computation: names, ties, flags and the arguments of the original."""
    skeleton: nn.Module = type(model_class, (nn.Module,), {"forward": _signature_of(program)})()
    own = {**program.constants, **program.state_dict}
    for spec in program.graph_signature.input_specs:
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER) or spec.target is None:
            continue
        path, _, name = spec.target.rpartition(".")
        holder = skeleton
        for part in path.split(".") if path else ():
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        tensor = own[spec.target]
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(name, tensor)
        else:
            holder.register_buffer(name, tensor, persistent=bool(spec.persistent))  # type: ignore[arg-type]
    return skeleton


def _signature_of(program: ExportedProgram) -> object:
    """A function with the names of the arguments of the original ``forward``."""

    def forward(self: nn.Module, *args: object, **kwargs: object) -> None:
        raise NotImplementedError("a skeleton computes nothing")

    call = program.module_call_graph[0].signature
    names = list(call.forward_arg_names or ()) if call is not None else []
    if all(name.isidentifier() for name in names) and len(set(names)) == len(names):
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter(name, kind) for name in dict.fromkeys(["self", *names])]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return forward
