"""Turn a captured graph into an ordinary module."""

import inspect

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.nn.modules.batchnorm import _NormBase

from prunus.capture import Captured
from prunus.capture.garbage import uncollected
from prunus.capture.shapes import Shapes, expect_shapes
from prunus.errors import SurgeryError
from prunus.surgery.devices import follow_device
from prunus.surgery.inplace import make_trainable
from prunus.surgery.lifted import LiftedModule, NamedModule, expect_constant, with_graph
from prunus.surgery.placement import Placement, place_modules
from prunus.surgery.recipe import Recipe

__all__ = ["in_mode_of", "lift"]

_UNKNOWN = object()
_KEPT_META = ("nn_module_stack", "stack_trace")


@uncollected
def lift(small: Captured) -> LiftedModule | NamedModule:
    """Turn a captured graph into a module that trains, exports and saves like the model it came from.

    Layers whose weights are parameters of the model become real ``nn`` modules at their original paths, so
    that ``train()`` updates batch statistics and activates dropout; all else stays a call of an ATen operator
    on parameters and buffers under their original names. The tensors are copies: the user's model and the
    capture are untouched.

    The result is in evaluation mode, and is called like the original: the same positional and keyword
    arguments as the example inputs, the same structure of outputs.

    What evaluation mode skips is not in the graph and so not in the result: stochastic depth, auxiliary
    heads.

    It is a `torch.fx.GraphModule`, or a plain module where the model has submodules or tensors at its top that are called
    like attributes of one.

    Args:
        small: A graph with placeholders for its tensors. It is not changed.

    Raises:
        SurgeryError: If a tensor cannot have its original name in a module of torch.
    """
    work = _working_copy(small)
    make_trainable(work)
    placement = place_modules(work)
    root = nn.Module()
    _install(root, small, placement)
    graph = _module_graph(root, work, placement, small.graph.owning_module)
    _follow_device(graph, root)
    _drop_unused_sizes(graph)
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(_argument_names(small), small.in_spec, small.out_spec)))
    graph.lint()
    return with_graph(graph, root, _class_name(small)).eval()


def _drop_unused_sizes(graph: fx.Graph) -> None:
    """Sizes that only the calls asked for which modules have taken over."""
    for node in reversed(list(graph.nodes)):
        if node.target is torch.ops.aten.sym_size.int and not node.users:
            graph.erase_node(node)


def in_mode_of(original: nn.Module | None, module: nn.Module) -> nn.Module:
    """A lifted module in the mode, training or evaluation, of its original: each layer in that of the layer it came from.

    Without an original (an exported program has no mode) it stays in evaluation mode.
    """
    if original is not None:
        modes = {path: each.training for path, each in original.named_modules(remove_duplicate=False)}
        for path, each in module.named_modules(remove_duplicate=False):
            each.training = modes.get(path, original.training)
    return module


def _class_name(small: Captured) -> str:
    return "LiftedModule" if small.model is None else f"Lifted{type(small.model).__name__}"


def _working_copy(small: Captured) -> Captured:
    """The same capture with a graph of its own; placeholders of tensors know the tensors themselves."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(small.graph, values, return_output_node=True)
    if isinstance(output, tuple):
        graph.output(output[0])
    for original, node in values.items():
        node.name = original.name  # fx renames what is called like a builtin, such as `input`
        if node.name in small.tensors:
            node.meta = {**node.meta, "val": small.tensors[node.name]}
    return small.with_(graph=graph)


# --- tensors and modules


def _install(root: nn.Module, small: Captured, placement: Placement) -> None:
    """Put copies of all tensors into the module under all of their names, in the order of the original."""
    owned = {placeholder: _owned(small, placeholder) for placeholder in small.tensors}
    places = {
        qualified: placeholder
        for placeholder, name in small.names.items()
        for qualified in (name, *small.aliases.get(name, ()))
    }
    order = _original_order(small)
    places = {name: places[name] for name in sorted(places, key=lambda name: order.get(name, len(order)))}
    paths = [*(name.rpartition(".")[0] for name in places), *placement.modules]
    for path in sorted(dict.fromkeys(paths), key=lambda path: order.get(path, len(order))):
        _descend(root, path, placement.modules)
    persistent = _persistence(small)
    for qualified, placeholder in places.items():
        path, _, attribute = qualified.rpartition(".")
        holder = root.get_submodule(path)
        tensor = owned[placeholder]
        try:
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(attribute, tensor)
            else:
                keeps = small.kinds[placeholder] == "buffer" and persistent.get(qualified, True)
                holder.register_buffer(attribute, tensor, persistent=keeps)
        except KeyError as error:
            raise _name_taken(qualified) from error
    for path in placement.modules:
        _finish_norm(root.get_submodule(path), _original(small, path))


def _original_order(small: Captured) -> dict[str, int]:
    """Position of each module and tensor in the original; without it, of each tensor in the capture."""
    if small.model is None:
        return {name: i for i, name in enumerate(small.names.values())}
    names = [path for path, _ in small.model.named_modules(remove_duplicate=False)]
    names += [name for name, _ in small.model.named_parameters(remove_duplicate=False)]
    names += [name for name, _ in small.model.named_buffers(remove_duplicate=False)]
    return {name: i for i, name in enumerate(names)}


def _descend(root: nn.Module, path: str, recipes: dict[str, Recipe]) -> nn.Module:
    """The module at a path, made with all on the way to it where it is missing."""
    current, walked = root, ""
    for part in path.split(".") if path else ():
        walked = f"{walked}.{part}" if walked else part
        child = current._modules.get(part)
        if child is None:
            child = recipes[walked].build() if walked in recipes else nn.Module()
            try:
                current.add_module(part, child)
            except KeyError as error:
                raise _name_taken(walked) from error
        current = child
    return current


def _name_taken(name: str) -> SurgeryError:
    return SurgeryError(
        f"{name} cannot keep its name: the module or layer around it has an attribute of that name. "
        "Rename it in the model."
    )


def _owned(small: Captured, placeholder: str) -> Tensor:
    tensor = small.tensors[placeholder]
    copy = tensor.detach().clone()
    if small.kinds[placeholder] != "parameter":
        return copy
    return nn.Parameter(copy, requires_grad=_requires_grad(small, placeholder))


def _requires_grad(small: Captured, placeholder: str) -> bool:
    """A parameter's own flag; a slice of a parameter that lost it takes the flag from the model."""
    tensor = small.tensors[placeholder]
    if isinstance(tensor, nn.Parameter) or tensor.requires_grad or not tensor.is_floating_point():
        return tensor.requires_grad
    if small.model is None:
        return True
    try:
        return small.model.get_parameter(small.names[placeholder]).requires_grad
    except AttributeError:
        return True


def _persistence(small: Captured) -> dict[str, bool]:
    """Qualified name of a buffer -> whether it belongs to the state dict, where the model is known."""
    if small.model is None:
        return {}
    saved: dict[str, bool] = {}
    for path, module in small.model.named_modules(remove_duplicate=False):
        for name in module._buffers:
            saved[f"{path}.{name}" if path else name] = name not in module._non_persistent_buffers_set
    return saved


def _original(small: Captured, path: str) -> nn.Module | None:
    try:
        return small.model.get_submodule(path) if small.model is not None else None
    except AttributeError:
        return None


def _finish_norm(module: nn.Module, original: nn.Module | None) -> None:
    """Settings of a batch norm that an evaluation graph does not show."""
    for name, buffer in module._buffers.items():
        if buffer is not None and buffer.is_meta:
            module._buffers[name] = None  # the original does not count its batches
    if isinstance(module, _NormBase) and getattr(original, "momentum", 0) is None:
        module.momentum = None  # a cumulative average, which the graph holds as a momentum of 0


# --- the graph


def _module_graph(root: nn.Module, work: Captured, placement: Placement, owner: nn.Module | None) -> fx.Graph:
    """The graph with placeholders for the inputs alone, and calls of the modules."""
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    by_name = {node.name: node for node in work.graph.find_nodes(op="placeholder")}
    for name in work.inputs:
        values[by_name[name]] = graph.node_copy(by_name[name])
    for name in work.inputs:
        _check_constant(graph, values[by_name[name]])
    if len(work.shapes.names) == len(work.inputs):
        _check_shapes(graph, [values[by_name[name]] for name in work.inputs], work.shapes)

    def value_of(node: fx.Node) -> fx.Node:
        if node not in values:
            values[node] = graph.get_attr(work.names[node.name])
        return values[node]

    for node in work.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "get_attr" and owner is not None:
            values[node] = _body(graph, node, root, owner)
        elif node.op == "output":
            graph.output(fx.map_arg(node.args[0], value_of))
        elif node in placement.calls:
            path, recipe = placement.calls[node]
            inputs = fx.map_arg(recipe.inputs, value_of)
            values[node] = graph.create_node("call_module", path, inputs, {}, name=node.name)  # type: ignore[arg-type]
            values[node].meta = dict(node.meta)
        else:
            values[node] = graph.node_copy(node, value_of)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta}
    return graph


def _check_constant(graph: fx.Graph, placeholder: fx.Node) -> None:
    """Inputs that are no tensors are constants of the graph: refuse others than those."""
    captured = placeholder.meta.get("val", _UNKNOWN)
    if captured is None or isinstance(captured, bool | int | float | str):
        graph.call_function(expect_constant, (placeholder, captured, placeholder.name))


def _check_shapes(graph: fx.Graph, inputs: list[fx.Node], shapes: Shapes) -> None:
    """Inputs of other sizes than the graph was made for would be answered wrongly: refuse them."""
    if any(dtype is not None for dtype in shapes.dtypes):
        graph.call_function(expect_shapes, (inputs, *shapes.as_arguments()))


def _body(graph: fx.Graph, node: fx.Node, root: nn.Module, owner: nn.Module) -> fx.Node:
    """Take over the body that a control flow operator calls, under a name that nothing else has."""
    body, name = owner.get_submodule(str(node.target)), str(node.target)
    while getattr(root, name, body) is not body:
        name += "_"
    root.add_module(name, body)
    copied = graph.get_attr(name)
    copied.meta = dict(node.meta)
    return copied


def _follow_device(graph: fx.Graph, module: nn.Module) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if tensors and len({tensor.device for tensor in tensors.values()}) == 1:
        anchor, tensor = next(iter(tensors.items()))
        follow_device(graph, tensor.device, anchor)


def _argument_names(small: Captured) -> list[str]:
    """Names of the arguments of ``forward``: positional ones as in the model, then the keywords."""
    positional, keywords = small.in_spec.child(0), list(small.in_spec.child(1).context)
    names: list[str] = []
    leaves = 0
    for i in range(positional.num_children):
        argument = positional.child(i)
        names.append(small.inputs[leaves] if argument.is_leaf() else f"arg_{i}")
        leaves += argument.num_leaves
    if small.model is not None:
        for i, parameter in enumerate(inspect.signature(small.model.forward).parameters.values()):
            if i >= len(names) or parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                break
            names[i] = parameter.name
    return [*(f"{name}_" if name in keywords else name for name in names), *keywords]
