"""Let tensors that the graph creates follow the module to another device."""

from typing import Any

import torch
from torch import fx

__all__ = ["follow_device"]


def follow_device(graph: fx.Graph, device: torch.device, anchor: str) -> None:
    """Replace a device written into the graph by the device that a tensor of the module is on.

    An exported graph creates positions, masks and the like on the device of the capture; after
    ``module.to(...)`` they would be on the old one.

    Args:
        graph: Graph of the lifted module; changed in place.
        device: The device to replace; others stay.
        anchor: Qualified name of a parameter or buffer of the module.
    """
    found = [(node, name) for node in graph.nodes for name in _device_arguments(node, device)]
    if not found:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        current = graph.call_function(getattr, (graph.get_attr(anchor), "device"))
    for node, name in found:
        if isinstance(name, str):
            node.kwargs = {**node.kwargs, name: current}
        else:
            node.args = (*node.args[:name], current, *node.args[name + 1 :])


def _device_arguments(node: fx.Node, device: torch.device) -> list[Any]:
    if node.op != "call_function":
        return []
    named: list[Any] = [name for name, value in node.kwargs.items() if _is_same(value, device)]
    return named + [i for i, value in enumerate(node.args) if _is_same(value, device)]


def _is_same(value: Any, device: torch.device) -> bool:
    return (
        isinstance(value, torch.device)
        and value.type == device.type
        and (value.index or 0) == (device.index or 0)
    )
