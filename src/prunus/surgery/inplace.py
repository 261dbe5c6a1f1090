"""Make in-place operators fit for training without changing what the graph computes."""

import operator

import torch
from torch import Tensor, fx

from prunus.capture import Captured

__all__ = ["make_trainable"]

aten = torch.ops.aten

# Autograd keeps the results of these for the backward pass: nothing may write to them.
_KEEPS_RESULT = frozenset(
    "relu relu_ relu6 relu6_ sigmoid sigmoid_ tanh tanh_ softmax log_softmax exp exp_ expm1 sqrt sqrt_ "
    "rsqrt rsqrt_ reciprocal reciprocal_ norm linalg_vector_norm logsumexp std prod cumprod amax amin "
    "max min tan elu_ celu_ selu_ leaky_relu_ scaled_dot_product_attention".split()
)
# The backward pass of these does without their inputs: their inputs may be written to afterwards.
_NEEDS_NO_INPUT = frozenset(
    "add sub rsub neg sum mean cat stack pad constant_pad_nd dropout dropout_ clone to relu relu6 "
    "sigmoid tanh softmax log_softmax exp sqrt rsqrt upsample_nearest2d upsample_bilinear2d avg_pool2d "
    "adaptive_avg_pool2d zeros_like ones_like full_like empty_like new_zeros new_ones new_full "
    "new_empty size sym_size".split()
)


def make_trainable(captured: Captured) -> None:
    """Edit the captured graph in place so that a training step works wherever it could.

    Two things that are harmless in evaluation stop autograd: writing to a parameter (the model did so under
    ``no_grad``, which the graph no longer says), and writing to a value that the backward pass reads (the
    model may have had a layer between the two that evaluation skips, such as stochastic depth). The first
    goes through ``detach``; the second becomes the operator that returns a new tensor, if nothing else sees
    the memory.
    """
    order = {node: i for i, node in enumerate(captured.graph.nodes)}
    for node in list(captured.graph.nodes):
        if not _is_write(node) or not isinstance(node.args[0], fx.Node):
            continue
        target = node.args[0]
        if captured.kinds.get(_base(target).name) == "parameter":
            _detach_target(node, target)
        elif _read_in_backward(node, target, order):
            _write_elsewhere(node, target, order)


def _name(node: fx.Node) -> str:
    if not isinstance(node.target, torch._ops.OpOverload):
        return ""
    return node.target._schema.name.partition("::")[2]


def _is_write(node: fx.Node) -> bool:
    """Whether the call writes to its first operand."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.args:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return alias is not None and alias.is_write


def _is_view(node: fx.Node) -> bool:
    """Whether the call may return its first operand's memory."""
    if not isinstance(node.target, torch._ops.OpOverload) or not node.target._schema.arguments:
        return False
    alias = node.target._schema.arguments[0].alias_info
    return (alias is not None and not alias.is_write) or _name(node) == "dropout"


def _base(node: fx.Node) -> fx.Node:
    """The value whose memory a value shares."""
    while node.op == "call_function" and (
        _is_view(node) or _is_write(node) or node.target is operator.getitem
    ):
        operand = node.args[0]
        if not isinstance(operand, fx.Node):
            break
        node = operand
    return node


def _detach_target(node: fx.Node, target: fx.Node) -> None:
    with node.graph.inserting_before(node):
        detached = node.graph.call_function(aten.detach.default, (target,))
    detached.meta = dict(target.meta)
    node.args = (detached, *node.args[1:])
    # what the write returns is the target itself, which carries the gradient
    node.replace_all_uses_with(target)


def _read_in_backward(node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> bool:
    if _name(target) in _KEEPS_RESULT:
        return True
    earlier = [user for user in target.users if order.get(user, order[node]) < order[node]]
    return any(not _is_view(user) and _name(user) not in _NEEDS_NO_INPUT for user in earlier)


def _write_elsewhere(node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> None:
    overload = _out_of_place(node)
    if overload is None or not _is_private(node, target, order) or not _keeps_type(node, target):
        return
    node.target = overload
    target.replace_all_uses_with(node, delete_user_cb=lambda user: order.get(user, -1) > order[node])


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    """The operator that returns what this one writes."""
    assert isinstance(node.target, torch._ops.OpOverload)
    packet = getattr(aten, _name(node).removesuffix("_"), None) if _name(node).endswith("_") else None
    return getattr(packet, node.target._overloadname, None)


def _is_private(node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether what is written is seen afterwards through ``target`` alone."""
    current, inner = target, node
    while current.op == "call_function" and not _is_view(current) and current.target is not operator.getitem:
        others = [user for user in current.users if user is not inner]
        if any(_is_view(user) or _is_write(user) for user in others):
            return False
        if current is not target and any(order.get(user, -1) > order[node] for user in others):
            return False
        operand = current.args[0] if _is_write(current) else None
        if not isinstance(operand, fx.Node):
            return True  # the memory was allocated here
        current, inner = operand, current
    return False


def _keeps_type(node: fx.Node, target: fx.Node) -> bool:
    """Whether the operator that returns a new tensor gives it the type of the one written to."""
    own = target.meta.get("val")
    others = [arg.meta.get("val") for arg in node.all_input_nodes if arg is not target]
    if not isinstance(own, Tensor):
        return False
    return all(
        not isinstance(other, Tensor)
        or other.dtype == own.dtype
        or other.dim() == 0
        or not other.is_floating_point()
        for other in others
    )
