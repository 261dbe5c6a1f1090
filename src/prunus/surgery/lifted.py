"""The module that a lifted graph becomes."""

import copy
import weakref
from typing import Any, ClassVar

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from prunus.capture.forgetting import forget_source
from prunus.errors import CaptureError

__all__ = ["LiftedModule", "NamedModule", "expect_constant", "with_graph"]


class LiftedModule(fx.GraphModule):
    """A graph module that survives copying and pickling with all that it holds.

    `torch.fx.GraphModule` forgets on the way which buffers are not persistent and what hooks there are; and
    to unpickle it runs its code once more, so that whatever does not depend on the inputs freezes into new
    buffers.
    """

    def recompile(self) -> Any:
        """Write the code, whose text torch is to keep for as long as there is this module."""
        code = super().recompile()
        weakref.finalize(self, forget_source, type(self).forward.__code__.co_filename).atexit = False
        return code

    def __deepcopy__(self, memo: dict[int, Any]) -> "LiftedModule":
        copied = _blank(type(self).__name__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(_state(self), memo))
        copied.graph = copy.deepcopy(self.graph)
        return copied

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self).__name__, _encode(self.graph), self.graph._codegen, _state(self))


class NamedModule(nn.Module):
    """A lifted module without ``graph``, ``code``, ``meta``...: for models whose submodules or tensors have such names."""

    _lifted: ClassVar[LiftedModule]  # holds the graph, and nothing else

    def __reduce__(self) -> tuple[Any, ...]:
        return _named, (self._lifted, _state(self))


def with_graph(graph: fx.Graph, root: nn.Module, name: str) -> LiftedModule | NamedModule:
    """What `root` holds, with a graph as its forward, as a module of the class `name`."""
    module = _blank(name)
    module.graph = graph
    taken = {*vars(module), *dir(module)} - {*dir(nn.Module()), "forward"}
    if taken.isdisjoint({*root._modules, *root._parameters, *root._buffers}):
        module.__dict__.update(_state(root))
        return module
    return _named(module, _state(root))


def _named(lifted: LiftedModule, state: dict[str, Any]) -> NamedModule:
    specs = {name: value for name, value in vars(lifted).items() if name in ("_in_spec", "_out_spec")}
    body = {**specs, "forward": type(lifted).forward, "_lifted": lifted}
    module = type(type(lifted).__name__, (NamedModule,), body)()
    module.__dict__.update(state)
    return module


def _blank(name: str) -> LiftedModule:
    return LiftedModule(nn.Module(), fx.Graph(), class_name=name)


def _state(module: nn.Module) -> dict[str, Any]:
    """What any module holds: submodules, tensors, mode, hooks; not what a graph module adds."""
    return {name: module.__dict__[name] for name in (*vars(nn.Module()), "meta") if name in module.__dict__}


class _Reference(str):
    """The name of a node, where the node stood as an argument."""


def _encode(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """The calls of a graph without the graph: names instead of nodes, names instead of ATen operators."""
    return [
        (
            node.op,
            _Reference(node.target.name()) if isinstance(node.target, torch._ops.OpOverload) else node.target,
            fx.map_arg(node.args, lambda operand: _Reference(operand.name)),  # type: ignore[arg-type, return-value]
            fx.map_arg(node.kwargs, lambda operand: _Reference(operand.name)),  # type: ignore[arg-type, return-value]
            node.name,
            dict(node.meta),
        )
        for node in graph.nodes
    ]


def _rebuild(
    name: str, calls: list[tuple[Any, ...]], codegen: CodeGen, state: dict[str, Any]
) -> LiftedModule:
    module = _blank(name)
    module.__dict__.update(state)
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, target, args, kwargs, node_name, meta in calls:
        called = _operator(target) if isinstance(target, _Reference) else target
        node = graph.create_node(op, called, _resolve(args, nodes), _resolve(kwargs, nodes), name=node_name)
        node.name, node.meta = node_name, meta
        nodes[node_name] = node
    graph.set_codegen(codegen)
    module.graph = graph
    return module


def _operator(name: str) -> Any:
    namespace, _, rest = name.partition("::")
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")


def _resolve(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, _Reference):
        return nodes[value]
    if isinstance(value, tuple | list):
        return type(value)(_resolve(item, nodes) for item in value)
    if isinstance(value, dict):
        return {key: _resolve(item, nodes) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolve(item, nodes) for item in (value.start, value.stop, value.step)))
    return value


def expect_constant(value: Any, captured: Any, name: str) -> None:
    """Refuse an argument that differs from the constant the model was captured with.

    Args:
        value: What the caller passed.
        captured: The number, string or None that the graph was made for.
        name: Name of the argument.

    Raises:
        CaptureError: If they differ.
    """
    if isinstance(value, fx.Proxy):  # fx traces the module: keep the check in the new graph
        value.tracer.create_proxy("call_function", expect_constant, (value, captured, name), {})
        return
    same = value is captured or (not isinstance(value, torch.Tensor) and bool(value == captured))
    if not same:
        given = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
        raise CaptureError(
            f"The argument {name} is {given}, but the model was captured with {name}={captured!r}, which its "
            f"graph holds as a constant. Call it with {captured!r}, or compress the model with an example "
            "input that has the other value."
        )
