"""Match the graph of a model with replaced layers with the original's, value by value."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from prunus.capture import Captured
from prunus.surgery.biases import with_own_graph

__all__ = ["with_names_of"]

aten = torch.ops.aten
_KERNELS = {
    aten.linear.default,
    *(getattr(getattr(aten, f"conv{n}d"), form) for n in (1, 2, 3) for form in ("default", "padding")),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}


def with_names_of(
    original: Captured, small: Captured, chains: Mapping[str, nn.Sequential]
) -> Captured | None:
    """The new graph with the original's names: what a replaced layer put out is what the last layer of its chain does.

    What a chain computes on the way has names that the original does not have.

    Args:
        original: before.
        small: of the model with replaced layers; it stays as it is.
        chains: module path -> what stands in for the layer.

    Returns:
        None where the two graphs do not go the same way apart from the chains.
    """
    renamed = with_own_graph(small)
    ends = {path: path for path in chains}
    lasts = {
        f"{path}.{len(chain) - 1}" if path else f"{len(chain) - 1}": path for path, chain in chains.items()
    }
    inside = {f"{path}.{name}" if path else name for path, chain in chains.items() for name, _ in chain.named_children()}  # fmt: skip
    before, after = _calls(original, ends, set(chains)), _calls(renamed, lasts, inside)
    if [key for _, key in before] != [key for _, key in after]:
        return None
    wanted = {new: old.name for (old, _), (new, _) in zip(before, after, strict=True)}
    taken = {*wanted.values(), *(node.name for node in original.graph.nodes)}
    for number, node in enumerate(renamed.graph.nodes):
        if node in wanted:
            node.name = wanted[node]
        elif node.op == "call_function":
            node.name = _free(f"factor_{number}", taken)
        elif node.name in wanted.values():
            return None
    return renamed


def _calls(captured: Captured, ends: Mapping[str, str], inside: set[str]) -> list[tuple[fx.Node, object]]:
    """Calls in order, each with what it must be in the other graph: the layer of which it is the end, or its operator."""
    found: list[tuple[fx.Node, object]] = []
    for node in captured.graph.nodes:
        if node.op != "call_function":
            continue
        path = _module(node)
        if path is not None and path in ends and node.target in _KERNELS:
            found.append((node, ends[path]))
        elif path not in inside:
            found.append((node, node.target))
    return found


def _module(node: fx.Node) -> str | None:
    stack = node.meta.get("nn_module_stack") or {}
    return list(stack.values())[-1][0].partition("@")[0] if stack else None


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"{name}_"
    taken.add(name)
    return name
