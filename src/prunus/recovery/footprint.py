"""How much memory the values of a graph take, before it is run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.sizes import concrete, is_symbolic
from prunus.errors import CaptureError
from prunus.evidence.interpret import last_uses
from prunus.surgery.memory import free_bytes

__all__ = ["Footprint", "Share", "footprint", "shared_out"]

_PART_OF_FREE = 0.5  # the rest is for the sums, the decompositions and whatever else runs


@dataclass(frozen=True)
class Footprint:
    """Bytes of the values of a batch.

    Attributes:
        kept: the most that is alive when the graph stands still, at one of its stops.
        peak: the most that is alive at any time.
    """

    kept: int
    peak: int


@dataclass(frozen=True)
class Share:
    """What of the batches stays in memory.

    Attributes:
        resident: so many batches, from the first on.
        disk_bytes: what the others take.
    """

    resident: int
    disk_bytes: int


def footprint(captured: Captured, stops: Sequence[tuple[fx.Node, bool]], samples: int) -> Footprint:
    """What a batch takes, from the sizes in the graph.

    Views count with what they look at. What an operator needs for itself is not known.

    Args:
        captured: the graph.
        stops: nodes at which it stands still, and whether the node has run by then.
        samples: size of the batch.
    """
    nodes = list(captured.graph.nodes)
    last, owner, alive = last_uses(nodes), _owners(nodes), dict[fx.Node, int]()
    viewers: dict[fx.Node, set[fx.Node]] = {}
    held_before = {node for node, ran in stops if not ran}
    held_after = {node for node, ran in stops if ran}
    inputs = set(captured.inputs)
    total, kept, peak = 0, 0, 0
    for node in nodes:
        if node in held_before:
            kept = max(kept, total)
        if node.op == "call_function" or node.name in inputs:
            root = owner[node]
            viewers.setdefault(root, set()).add(node)
            if root not in alive:
                own = root.op == "call_function" or root.name in inputs  # the rest is the model's
                alive[root] = _bytes(root, captured.batch, samples) if own else 0
                total += alive[root]
        peak = max(peak, total)
        for done in last.get(node, ()):
            root = owner[done]
            viewers.get(root, set()).discard(done)
            if root in alive and not viewers[root]:
                total -= alive.pop(root)
        if node in held_after:
            kept = max(kept, total)
    return Footprint(kept, peak)


def _owners(nodes: Sequence[fx.Node]) -> dict[fx.Node, fx.Node]:
    """Node -> the one whose memory it looks at; itself where it has memory of its own."""
    owner: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        owner[node] = node
        if isinstance(node.target, torch._ops.OpOverload) and node.all_input_nodes:
            returns = node.target._schema.returns
            looks = bool(returns) and all(r.alias_info is not None for r in returns)
            if looks and isinstance(node.args[0], fx.Node):
                owner[node] = owner[node.args[0]]
        elif node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
            owner[node] = owner[node.all_input_nodes[0]]
    return owner


def _bytes(node: fx.Node, batch: int | None, samples: int) -> int:
    return sum(
        _tensor_bytes(leaf, batch, samples)
        for leaf in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(leaf, Tensor)
    )


def _tensor_bytes(value: Any, batch: int | None, samples: int) -> int:
    try:
        size = math.prod(concrete(tuple(value.shape))) * value.dtype.itemsize
    except CaptureError:  # depends on the data
        return 0
    grows = batch is not None and any(is_symbolic(s) for s in value.shape)
    return size * samples // batch if grows and batch else size


def shared_out(needs: Sequence[Footprint], budget_bytes: int | None, device: torch.device) -> Share:
    """How many batches fit into memory.

    Args:
        needs: of each batch, both networks together.
        budget_bytes: memory to be used; None for half of what is free on the device.
        device: where the values are.
    """
    if budget_bytes is None:
        free = free_bytes(device)
        if free is None:
            return Share(len(needs), 0)
        budget_bytes = int(free * _PART_OF_FREE)
    at_work = max((need.peak for need in needs), default=0)
    if sum(need.kept for need in needs) + at_work <= budget_bytes:
        return Share(len(needs), 0)
    room, resident = budget_bytes - at_work, 0
    for need in needs:
        room -= need.kept
        if room < 0:
            break
        resident += 1
    return Share(resident, sum(need.kept for need in needs[resident:]))
