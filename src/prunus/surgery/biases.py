"""Give a bias to layers that have none."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from prunus.capture import Captured
from prunus.errors import PlanError
from prunus.surgery.placement import module_path
from prunus.surgery.recipe import bound_arguments

__all__ = ["bias_path", "give_bias", "with_own_graph", "with_zero_biases"]

aten = torch.ops.aten
_LAYERS = {
    aten.linear.default: nn.Linear,
    aten.conv1d.default: nn.Conv1d, aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d, aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d, aten.conv3d.padding: nn.Conv3d,
    aten.conv_transpose1d.default: nn.ConvTranspose1d, aten.conv_transpose2d.input: nn.ConvTranspose2d,
    aten.conv_transpose3d.input: nn.ConvTranspose3d,
}  # fmt: skip


def with_own_graph(small: Captured) -> Captured:
    """The same with a graph and dictionaries of its own, which `give_bias` may change. Nodes keep their names."""
    graph = fx.Graph(owning_module=small.graph.owning_module)
    values: dict[fx.Node, fx.Node] = {}
    output = graph.graph_copy(small.graph, values, return_output_node=True)
    assert isinstance(output, tuple)
    graph.output(output[0])
    for original, node in values.items():
        node.name = original.name  # fx renames what is called like a builtin, such as `input`
    return small.with_(
        graph=graph, tensors=dict(small.tensors), names=dict(small.names), kinds=dict(small.kinds)
    )


def bias_path(small: Captured, node: fx.Node) -> str | None:
    """Path of the layer that makes a call and could have a bias; None where it has one, or there is no such layer.

    In a model that still has its class, that is a module whose own forward makes the call: one whose weight somebody else reads
    would go without the bias that it is given.
    """
    cls = _LAYERS.get(node.target)  # type: ignore[arg-type]
    if cls is None or len(node.args) < 2:
        return None
    weight, bias = node.args[1], node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    if bias is not None or not isinstance(weight, fx.Node) or small.kinds.get(weight.name) != "parameter":
        return None
    path, _, attribute = small.names[weight.name].rpartition(".")
    taken = {*small.names.values(), *(name for names in small.aliases.values() for name in names)}
    if not path or attribute != "weight" or f"{path}.bias" in taken or module_path(node) != path:
        return None
    if small.model is None:
        return path
    try:
        module = small.model.get_submodule(path)
    except AttributeError:
        return None
    return path if _is_plain(module, cls) else None


def _is_plain(module: nn.Module, cls: type[nn.Module]) -> bool:
    """A module that does what its class of torch does, and has place for a bias."""
    return (
        isinstance(module, cls)
        and type(module).forward is cls.forward
        and module._parameters.get("bias", module) is None
    )


def give_bias(small: Captured, node: fx.Node, path: str, bias: Tensor) -> str:
    """Let a call add a bias, in place: `small` has to have a graph of its own.

    Args:
        small: the network.
        node: the call, of which `bias_path` is not None.
        path: of the layer.
        bias: (out,).

    Returns:
        The placeholder.
    """
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    last = list(small.graph.find_nodes(op="placeholder"))[-1]
    with small.graph.inserting_after(last):
        placeholder = small.graph.placeholder(f"{weight.name}_bias")
    placeholder.meta["val"] = bias.detach()
    node.args = (*node.args[:2], placeholder, *node.args[3:])
    if "bias" in node.kwargs:
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != "bias"}
    small.tensors[placeholder.name] = nn.Parameter(
        bias.detach(), requires_grad=small.tensors[weight.name].requires_grad
    )
    small.names[placeholder.name], small.kinds[placeholder.name] = f"{path}.bias", "parameter"
    return placeholder.name


def with_zero_biases(small: Captured, paths: Sequence[str]) -> Captured:
    """A copy in which some layers have a bias of zeros.

    Raises:
        PlanError: one that is not there, or has a bias.
    """
    if not paths:
        return small
    small = with_own_graph(small)
    nodes = {bias_path(small, node): node for node in small.graph.nodes}
    odd = [path for path in paths if path not in nodes]
    if odd:
        raise PlanError(
            f"the plan gives {odd[0]} a bias, but the model has no linear layer or convolution there that lacks one"
        )
    for path in paths:
        weight = nodes[path].args[1]
        assert isinstance(weight, fx.Node)
        tensor = small.tensors[weight.name]
        give_bias(small, nodes[path], path, tensor.detach().new_zeros(_outputs(nodes[path], tensor)))
    return small


def _outputs(node: fx.Node, weight: Tensor) -> int:
    """How many outputs a layer has."""
    if "conv_transpose" not in str(node.target):
        return weight.shape[0]
    return weight.shape[1] * int(bound_arguments(node).get("groups") or 1)
