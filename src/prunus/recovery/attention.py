"""Attentions whose queries and keys have lost width: where they are, and which rows of which layer make the queries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import Captured, concrete, size_of
from prunus.recovery.layers import Layer
from prunus.surgery.recipe import bound_arguments

__all__ = [
    "Attention",
    "Queries",
    "alone",
    "find_attentions",
    "is_move",
    "moved",
    "narrowed",
    "numbered",
    "queries_of",
]

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
_BEFORE_SOFTMAX = frozenset(
    "add add_ mul mul_ div div_ masked_fill masked_fill_ view to _to_copy where".split()
)
_MOVES = frozenset(
    "view reshape _unsafe_view transpose permute contiguous clone split split_with_sizes chunk unbind slice select unsqueeze "
    "squeeze unflatten flatten getitem dropout alias".split()
)
_PICKS = frozenset("split split_with_sizes chunk unbind slice select getitem".split())
_SCALES = frozenset("mul div".split())


@dataclass(frozen=True, eq=False)
class Attention:
    """The product of queries and keys.

    Attributes:
        node: the call that multiplies them.
        query, key: what it multiplies: (batch, heads, tokens, width), the key perhaps with the last two exchanged.
        key_is_turned: whether they are.
        scale: what the product is multiplied by within the call.
        mask: added to the product, or true where it counts; None without one.
        causal: whether queries see the keys up to their own only.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    key_is_turned: bool = False
    scale: float = 1.0
    mask: fx.Node | None = None
    causal: bool = False


def find_attentions(captured: Captured) -> dict[str, Attention]:
    """Name of the node -> attention, for all whose queries have four axes."""
    found = {}
    for node in captured.graph.nodes:
        made = _attention(node)
        if made is not None and all(_rank(n) == 4 for n in (made.query, made.key)):
            found[node.name] = made
    return found


def narrowed(original: Captured, small: Captured) -> dict[fx.Node, tuple[Attention, Attention]]:
    """The attentions of the cut network whose queries and keys have lost width: each as it is, and as it was."""
    before, after = find_attentions(original), find_attentions(small)
    return {
        now.node: (now, before[name])
        for name, now in after.items()
        if name in before and size_of(now.query)[-1] < size_of(before[name].query)[-1]
    }


def _attention(node: fx.Node) -> Attention | None:
    if node.target is _SDPA:
        a = bound_arguments(node)
        query, mask = a["query"], a["attn_mask"]
        scale = size_of(query)[-1] ** -0.5 if a["scale"] is None else a["scale"]
        if not isinstance(scale, float | int):
            return None
        mask = mask if isinstance(mask, fx.Node) else None
        return Attention(node, query, a["key"], False, float(scale), mask, bool(a["is_causal"]))
    if node.target in _PRODUCTS and _reaches_softmax(node):
        query, key = node.args[:2]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        return Attention(node, query, key, True)
    return None


def _reaches_softmax(node: fx.Node) -> bool:
    while len(node.users) == 1:
        node = next(iter(node.users))
        if _kind(node) in _SOFTMAX:
            return True
        if _kind(node) not in _BEFORE_SOFTMAX:
            return False
    return False


def _rank(node: Any) -> int:
    return len(getattr(node.meta.get("val"), "shape", ())) if isinstance(node, fx.Node) else 0


def _kind(node: fx.Node) -> str:
    """Name of the operator, without its overload."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition("::")[2]
    return getattr(node.target, "__name__", "")


@dataclass(frozen=True, eq=False)
class Queries:
    """Where queries come from.

    Attributes:
        layer: makes them.
        rows: (heads, width) which of its outputs they are.
        factor: what they are multiplied by on the way.
    """

    layer: Layer
    rows: Tensor
    factor: float


def queries_of(query: fx.Node, layers: dict[fx.Node, Layer]) -> Queries | None:
    """The outputs of a layer that are the queries.

    None where something else than moving and scaling happens on the way, such as a rotary embedding or a normalization, or where
    somebody else uses the same outputs.
    """
    chain = [query]
    while chain[-1] not in layers:
        node = chain[-1]
        if not is_move(node) and not _only_scales(node):
            return None
        source = node.args[0]
        if not isinstance(source, fx.Node):
            return None
        chain.append(source)
    chain.reverse()
    layer = layers[chain[0]]
    if layer.transposed:
        return None
    channels = numbered(layer)
    values = {layer.node: channels}
    for node in chain[1:]:
        values[node] = moved(node, values)
    rows = values[query]
    first = rows[:1, :, :1]
    if rows.dim() != 4 or not bool((rows == first).all()):
        return None
    rows = first[0, :, 0]
    if len(rows.unique()) != rows.numel() or not alone(chain, values, set(rows.flatten().tolist())):
        return None
    return Queries(layer, rows, math.prod(_factor(node) for node in chain[1:]))


def numbered(layer: Layer) -> Tensor:
    """The layer's output, each element being the number of its channel."""
    shape = size_of(layer.node)
    axis = layer.channel_axis % len(shape)
    numbers = torch.arange(shape[axis]).reshape(-1, *(1,) * (len(shape) - axis - 1))
    return numbers.expand(shape).clone()


def moved(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    """What a node makes of the numbers of channels."""
    if _only_scales(node):
        return values[node.args[0]]  # type: ignore[index]
    args, kwargs = (
        map_arg(a, lambda n: values[n] if n in values else concrete(n.meta["val"]))
        for a in (node.args, node.kwargs)
    )
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _only_scales(node: fx.Node) -> bool:
    return _kind(node) in _SCALES and isinstance(node.args[1], float | int)


def _factor(node: fx.Node) -> float:
    if not _only_scales(node):
        return 1.0
    number = float(node.args[1])  # type: ignore[arg-type]
    return number if _kind(node) == "mul" else 1 / number


def is_move(node: fx.Node) -> bool:
    """Whether it only moves numbers, or picks some."""
    return _kind(node) in _MOVES


def alone(chain: list[fx.Node], values: dict[fx.Node, Any], rows: set[int], shared_end: bool = False) -> bool:
    """Whether nobody else gets any of the rows; with `shared_end`, up to the last node of the chain."""
    for node, following in pairwise(chain):
        for user in node.users:
            if user is following or _kind(user) == "sym_size":
                continue
            if _kind(user) not in _PICKS:
                return False
            if any(rows & set(part.flatten().tolist()) for part in _tensors(moved(user, values))):
                return False
    return shared_end or len(chain[-1].users) == 1


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for each in value:
            yield from _tensors(each)
