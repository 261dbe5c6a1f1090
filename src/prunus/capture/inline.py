"""Clean an exported graph: inline wrappers, drop checks and dead calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

__all__ = ["clean_graph"]


def clean_graph(graph: fx.Graph) -> None:
    """Reduce an exported graph to the calls that compute something, in place.

    Wrapper operators that only set a mode that does not change the numbers (``no_grad``, autocast switched
    off, activation checkpointing) are replaced by their body. Run-time checks and calls without effect and
    without users are dropped; placeholders always stay.
    """
    while any(_inline(graph, node) for node in list(graph.nodes) if _is_transparent_wrapper(node)):
        pass
    for node in list(graph.nodes):
        if _is_check(node):
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_pure(node):
            graph.erase_node(node)
    graph.lint()


def _is_transparent_wrapper(node: fx.Node) -> bool:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.HigherOrderOperator):
        return False
    name = node.target.name()
    if name == "wrap_with_autocast":
        # (device_type, dtype, enabled, cache_enabled, body, *operands); switched on, it changes dtypes
        return node.args[2] is False
    return name in (
        "wrap_with_set_grad_enabled",
        "tag_activation_checkpoint",
        "wrap",
        "hints_wrapper",
        "strict_mode",
    )


def _inline(graph: fx.Graph, call: fx.Node) -> bool:
    """Replace a wrapper call by the nodes of its body; False when it is not of the known form."""
    at = next(
        (i for i, arg in enumerate(call.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"), None
    )
    owner = graph.owning_module
    if at is None or owner is None:
        return False
    reference = call.args[at]
    assert isinstance(reference, fx.Node)
    body = owner.get_submodule(str(reference.target)) if reference.op == "get_attr" else None
    if not isinstance(body, fx.GraphModule):
        return False
    operands = list(call.args[at + 1 :])
    if call.target is torch.ops.higher_order.hints_wrapper:
        operands = list(operands[0])  # type: ignore[arg-type]
    placeholders = body.graph.find_nodes(op="placeholder")
    if len(placeholders) != len(operands):
        return False
    values: dict[fx.Node, Any] = dict(zip(placeholders, operands, strict=True))
    result: Any = None
    with graph.inserting_before(call):
        for node in body.graph.nodes:
            if node.op == "output":
                result = fx.map_arg(node.args[0], lambda n: values[n])
            elif node.op == "get_attr":
                values[node] = _adopt(graph, owner, body, node)
            elif node.op != "placeholder":
                values[node] = graph.node_copy(node, lambda n: values[n])
    _replace_result(graph, call, result)
    graph.erase_node(call)
    return True


def _adopt(graph: fx.Graph, owner: torch.nn.Module, body: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Move what a nested ``get_attr`` refers to from the inlined body to the owner of the outer graph."""
    name = target = str(node.target)
    count = 0
    while hasattr(owner, name):
        count += 1
        name = f"{target}_{count}"
    setattr(owner, name, getattr(body, target))
    copy = graph.get_attr(name)
    copy.meta = dict(node.meta)
    return copy


def _replace_result(graph: fx.Graph, call: fx.Node, result: Any) -> None:
    if isinstance(result, fx.Node):
        call.replace_all_uses_with(result)
        return
    for user in list(call.users):
        # a body with several outputs is read with operator.getitem only
        index = user.args[1]
        user.replace_all_uses_with(result[index])
        graph.erase_node(user)


_CHECKS: tuple[str, ...] = (
    "_assert",
    "sym_constrain_range",
    "_functional_assert",
    "_functional_sym_constrain",
)


def _is_check(node: fx.Node) -> bool:
    if node.users or node.op not in ("call_function", "call_module"):
        return False
    if node.op == "call_module":
        return str(node.target).endswith("_guards_fn")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2].startswith(_CHECKS)
    return node.target in (torch._check, torch._check_is_size)


def _is_pure(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        return not node.target._schema.is_mutable
    return not isinstance(node.target, torch._ops.HigherOrderOperator) and _is_sym_function(node.target)


def _is_sym_function(target: Callable[..., Any] | str) -> bool:
    module = getattr(target, "__module__", None)
    return module in (
        "_operator",
        "operator",
        "math",
        "builtins",
        "torch",
        "torch.fx.experimental.symbolic_shapes",
    )
