"""From an exported program to `Captured`: names, ties, and the graph's final form."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from prunus.capture.captured import Captured
from prunus.capture.export import NotExportableError
from prunus.capture.finite import require_finite
from prunus.capture.forgetting import forget_sizes
from prunus.capture.inline import clean_graph
from prunus.capture.numbers import fold_numbers
from prunus.capture.shapes import Axis, Shapes, shapes_of
from prunus.capture.sizes import concrete, is_symbolic
from prunus.capture.twins import merge_twins
from prunus.errors import CaptureError
from prunus.inputs import Inputs

__all__ = ["captured_from"]

_KINDS = {
    InputKind.PARAMETER: "parameter",
    InputKind.BUFFER: "buffer",
    InputKind.CONSTANT_TENSOR: "constant",
}


def captured_from(
    program: ExportedProgram,
    model: nn.Module | None,
    example: Inputs,
    run_inputs: Inputs,
    reasons: Mapping[Axis, str] = MappingProxyType({}),
) -> Captured:
    """Bring an exported program into the form that later stages read; the program stays as it is.

    Raises:
        CaptureError: If the program holds something that is neither a tensor nor a plain constant, or if the
            size of some value depends on the data (`NotExportableError`).
    """
    forget_sizes(program, own=model is not None)
    graph = _copied(program)
    nodes = graph.find_nodes(op="placeholder")
    # copying renames a placeholder that is called like a Python builtin, so they are matched by position
    placeholders = {node.name: node for node in nodes}
    renamed: dict[str, str] = {}
    own = _own_tensors(model) if model is not None else _unified(program.state_dict)
    tensors: dict[str, Tensor] = {}
    names: dict[str, str] = {}
    kinds: dict[str, str] = {}
    inputs: list[str] = []
    given: list[str] = []  # what the forward calls them
    for spec, node in zip(program.graph_signature.input_specs, nodes, strict=True):
        name = renamed[spec.arg.name] = node.name
        if spec.kind == InputKind.USER_INPUT:
            inputs.append(name)
            given.append(spec.arg.name)
        elif spec.kind in _KINDS and spec.target is not None:
            tensors[name] = _tensor_of(spec.target, own, program)
            names[name] = spec.target
            kinds[name] = _KINDS[spec.kind]
        else:
            raise CaptureError(
                f"The model hands {spec.target or name} ({spec.kind.name.lower().replace('_', ' ')}) to its "
                "operators, which prunus cannot follow. Capture a submodule that does without it."
            )
    _write_mutations(program, graph, placeholders, renamed)
    twins = merge_twins(graph, placeholders, tensors, names, kinds)
    clean_graph(graph)
    fold_numbers(graph, tensors, kinds)
    _merge_ties(graph, placeholders, tensors, names, kinds, own)
    _require_known_sizes(graph)
    require_finite(placeholders, tensors, names, kinds)
    shapes = shapes_of(program, given, reasons)
    batch, reason = _dynamic_batch(inputs, placeholders, shapes)
    return Captured(
        graph=graph,
        tensors=tensors,
        names=names,
        kinds=kinds,
        aliases=_aliases(names, tensors, own),
        inputs=tuple(inputs),
        in_spec=_spec(program.call_spec.in_spec),
        out_spec=_spec(program.call_spec.out_spec),
        example=example,
        run_inputs=run_inputs,
        batch=batch,
        static_reason=reason,
        shapes=shapes,
        model=model,
        twins={name: each for name, each in twins.items() if name in tensors},
    )


def _copied(program: ExportedProgram) -> fx.Graph:
    """Copy a program's graph; what its ``get_attr`` nodes refer to goes into a bare module, its owner."""
    owner = nn.Module()
    for node in program.graph.find_nodes(op="get_attr"):
        setattr(owner, str(node.target), getattr(program.graph_module, str(node.target)))
    graph = fx.Graph(owning_module=owner)  # type: ignore[arg-type]  any module can own a graph
    results = graph.graph_copy(program.graph, {})
    graph.output(results).meta = dict(program.graph.output_node().meta)
    return graph


def _spec(spec: pytree.TreeSpec | None) -> pytree.TreeSpec:
    if spec is None:
        raise CaptureError("The exported program does not say how its inputs are called; export it again.")
    return spec


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers under all of their names, persistent or not."""
    return {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }


def _unified(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Use one object for tensors that share all their memory: loading makes one for each tied name."""
    first: dict[Any, Tensor] = {}
    unified = {}
    for name, tensor in state.items():
        key: Any = id(tensor)
        if tensor.layout == torch.strided and not tensor.is_meta and tensor.numel():
            key = (tensor.data_ptr(), tensor.device, tensor.dtype, tensor.shape, tensor.stride())
        unified[name] = first.setdefault(key, tensor)
    return unified


def _tensor_of(target: str, own: dict[str, Tensor], program: ExportedProgram) -> Tensor:
    tensor = own.get(target)
    if tensor is None:
        tensor = program.constants.get(target)
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"The exported program refers to a tensor {target!r} that it does not hold.")
    return tensor


def _merge_ties(
    graph: fx.Graph,
    placeholders: dict[str, fx.Node],
    tensors: dict[str, Tensor],
    names: dict[str, str],
    kinds: dict[str, str],
    own: dict[str, Tensor],
) -> None:
    """Leave one placeholder per tensor: the one of its first name in the model."""
    order = {name: i for i, name in enumerate(own)}
    ranked = sorted(tensors, key=lambda name: order.get(names[name], len(order)))
    first: dict[int, str] = {}
    for name in ranked:
        kept = first.setdefault(id(tensors[name]), name)
        if kept != name:
            placeholders[name].replace_all_uses_with(placeholders[kept])
            graph.erase_node(placeholders.pop(name))
            del tensors[name], names[name], kinds[name]


def _aliases(
    names: dict[str, str], tensors: dict[str, Tensor], own: dict[str, Tensor]
) -> dict[str, tuple[str, ...]]:
    by_tensor: dict[int, list[str]] = {}
    for name, tensor in own.items():
        by_tensor.setdefault(id(tensor), []).append(name)
    aliases = {}
    for placeholder, name in names.items():
        others = tuple(other for other in by_tensor.get(id(tensors[placeholder]), ()) if other != name)
        if others:
            aliases[name] = others
    return aliases


def _write_mutations(
    program: ExportedProgram, graph: fx.Graph, placeholders: dict[str, fx.Node], renamed: dict[str, str]
) -> None:
    """Turn the extra outputs of a functionalised program back into writes; the user's own outputs stay."""
    output = graph.output_node()
    results = list(output.args[0])  # type: ignore[arg-type]
    wanted: list[Any] = []
    names = {spec.target: spec.arg.name for spec in program.graph_signature.input_specs if spec.target}
    with graph.inserting_before(output):
        for spec, result in zip(program.graph_signature.output_specs, results, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT:
                wanted.append(result)
            elif spec.kind in (
                OutputKind.BUFFER_MUTATION,
                OutputKind.PARAMETER_MUTATION,
                OutputKind.USER_INPUT_MUTATION,
            ):
                target = placeholders[renamed[names.get(str(spec.target), str(spec.target))]]
                write = graph.call_function(torch.ops.aten.copy_.default, (target, result))
                write.meta["val"] = target.meta.get("val")
            else:
                raise CaptureError(
                    f"The exported program has an output of kind {spec.kind.name}, which is neither a "
                    "result nor a changed buffer. Export the model for inference."
                )
    output.args = (tuple(wanted),)


def _require_known_sizes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor):
                _require_known(node, list(value.shape))
            elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
                _require_known(node, value)


def _require_known(node: fx.Node, value: Any) -> None:
    try:
        concrete(value)
    except CaptureError as error:
        raise NotExportableError(f"{node.name} ({node.target}): {error}") from None


def _dynamic_batch(
    inputs: list[str], placeholders: dict[str, fx.Node], shapes: Shapes
) -> tuple[int | None, str | None]:
    """Hint of dim 0 of the first tensor among the inputs, when that dim may have any size, else why it may not."""
    values = [placeholders[name].meta.get("val") for name in inputs]
    first = next((value for value in values if isinstance(value, Tensor) and value.dim()), None)
    if first is None or not is_symbolic(first.shape[0]):
        return None, None
    given = [tuple(map(concrete, value.shape)) if isinstance(value, Tensor) else () for value in values]
    settled = shapes.settled_batch(given)
    return None if settled else concrete(first.shape[0]), settled
