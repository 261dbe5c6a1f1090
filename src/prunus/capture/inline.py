"""Clean an exported graph: put regions in where they are called, drop checks and dead calls."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture.autocast import Autocast
from prunus.capture.regions import AUTOCAST, BRANCH, choose, paste
from prunus.errors import CaptureError

__all__ = ["clean_graph"]

_TRANSPARENT = (
    "wrap_with_set_grad_enabled",
    "wrap_with_autocast",
    "tag_activation_checkpoint",
    "wrap_activation_checkpoint",
    "wrap",
    "hints_wrapper",
    "strict_mode",
)


def clean_graph(graph: fx.Graph) -> None:
    """Reduce an exported graph to the calls that compute something, in place.

    Regions become part of the graph around them: modes that do not change the numbers (``no_grad``, activation
    checkpointing) by their body alone, autocast with its casts written out, and a ``cond`` by both of its
    branches, between whose results a ``where`` chooses. The nodes of a branch know that they belong to it.
    Run-time checks and calls without effect and without users are dropped; placeholders always stay.

    Raises:
        CaptureError: If a region lies in an autocast region, and it is not known what autocast does to it.
    """
    while any([_inline(graph, node) for node in list(graph.nodes) if _is_region(node)]):
        pass
    for node in list(graph.nodes):
        if node.meta.get(AUTOCAST) is not None and _is_region(node):
            raise CaptureError(f"The model runs {node.target} under autocast, which prunus cannot follow.")
        if _is_check(node):
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_pure(node):
            graph.erase_node(node)
    graph.lint()


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator)


def _inline(graph: fx.Graph, call: fx.Node) -> bool:
    """Replace the call of a region by the nodes of its bodies; False when it is not of a known form."""
    name = call.target.name()  # type: ignore[union-attr]
    if name == "cond":
        result = _both_branches(graph, call)
    else:
        result = _body(graph, call) if name in _TRANSPARENT else None
    if result is None:
        return False
    _replace_result(graph, call, result)
    graph.erase_node(call)
    return True


def _body(graph: fx.Graph, call: fx.Node) -> Any:
    """The results of the one body of a call, put in before it; None when it is not of the known form."""
    at = next(
        (i for i, arg in enumerate(call.args) if isinstance(arg, fx.Node) and arg.op == "get_attr"), None
    )
    if at is None:
        return None
    operands = list(call.args[at + 1 :])
    if call.target is torch.ops.higher_order.hints_wrapper:
        operands = list(operands[0])  # type: ignore[arg-type]
    marks: dict[str, Any] = {}
    if call.target is torch.ops.higher_order.wrap_with_autocast:
        device, dtype, enabled, *_ = call.args
        marks[AUTOCAST] = Autocast(str(device), dtype) if enabled else None  # type: ignore[arg-type]
    return paste(graph, call, call.args[at], operands, marks)


def _both_branches(graph: fx.Graph, call: fx.Node) -> Any:
    """The results of a `cond`: both branches are put in, and each result is chosen from the two."""
    condition, yes, no, operands = call.args
    if not all(isinstance(value, Tensor) for value in call.meta["val"]):
        return None
    inside = call.meta.get(BRANCH, ())
    results = [
        paste(graph, call, body, list(operands), {BRANCH: (*inside, (call.name, taken))})  # type: ignore[arg-type]
        for body, taken in ((yes, True), (no, False))
    ]
    return None if None in results else choose(graph, call, condition, *results)


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
