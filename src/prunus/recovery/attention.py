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
from prunus.evidence.mixable import MOVES, PICKS, kind_of
from prunus.recovery.layers import Layer
from prunus.surgery.recipe import bound_arguments

__all__ = [
    "Attention",
    "Queries",
    "alone",
    "columns_of",
    "find_attentions",
    "is_move",
    "moved",
    "narrowed",
    "numbered",
    "queries_of",
    "seen_keys",
]

aten = torch.ops.aten
_SDPA = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SOFTMAX = ("softmax", "_softmax", "_safe_softmax")
_BEFORE_SOFTMAX = frozenset(
    "add add_ mul mul_ div div_ masked_fill masked_fill_ view to _to_copy where".split()
)
_BEHIND_SOFTMAX = frozenset("dropout dropout_ to _to_copy type_as clone contiguous".split())
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
        value: what the shares of attention are multiplied with, (batch, heads, tokens, width); None where that is not found.
        out: the result.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    key_is_turned: bool = False
    scale: float = 1.0
    mask: fx.Node | None = None
    causal: bool = False
    value: fx.Node | None = None
    out: fx.Node | None = None


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
        return Attention(
            node, query, a["key"], False, float(scale), mask, bool(a["is_causal"]), a["value"], node
        )
    softmax = _softmax_behind(node) if node.target in _PRODUCTS else None
    if softmax is not None:
        query, key = node.args[:2]
        assert isinstance(query, fx.Node) and isinstance(key, fx.Node)
        out = _product_behind(softmax)
        value = None if out is None else out.args[1]
        return Attention(node, query, key, True, value=value if isinstance(value, fx.Node) else None, out=out)
    return None


def _softmax_behind(node: fx.Node) -> fx.Node | None:
    while len(node.users) == 1:
        node = next(iter(node.users))
        if kind_of(node) in _SOFTMAX:
            return node
        if kind_of(node) not in _BEFORE_SOFTMAX:
            return None
    return None


def _product_behind(softmax: fx.Node) -> fx.Node | None:
    node = softmax
    while len(node.users) == 1:
        before, node = node, next(iter(node.users))
        if node.target in _PRODUCTS:
            return node if node.args[0] is before and _rank(node) == 4 else None
        if kind_of(node) not in _BEHIND_SOFTMAX:
            return None
    return None


def _rank(node: Any) -> int:
    return len(getattr(node.meta.get("val"), "shape", ())) if isinstance(node, fx.Node) else 0


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


def queries_of(query: fx.Node, layers: dict[fx.Node, Layer], turned: bool = False) -> Queries | None:
    """The outputs of a layer that are the queries, or, as well, the keys or values; `turned` with the last two axes exchanged.

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
    rows = values[query].mT if turned else values[query]
    first = rows[:1, :, :1]
    if rows.dim() != 4 or not bool((rows == first).all()):
        return None
    rows = first[0, :, 0]
    if len(rows.unique()) != rows.numel() or not alone(chain, values, set(rows.flatten().tolist())):
        return None
    return Queries(layer, rows, math.prod(_factor(node) for node in chain[1:]))


def columns_of(out: fx.Node, layers: dict[fx.Node, Layer]) -> tuple[Layer, Tensor] | None:
    """The linear layer that alone reads what heads hand on, and (heads, width) which of its inputs that is.

    Args:
        out: (batch, heads, tokens, width).
        layers: those that are known.
    """
    readers = {layer.source: layer for layer in layers.values() if layer.node.target is aten.linear.default}
    heads, width = size_of(out)[1], size_of(out)[3]
    numbers = torch.arange(heads * width).reshape(heads, 1, width).expand(size_of(out)).clone()
    values, node = {out: numbers}, out
    while node not in readers:
        users = [user for user in node.users if kind_of(user) != "sym_size"]
        if len(users) != 1 or not is_move(users[0]) or kind_of(users[0]) in PICKS:
            return None
        values[users[0]] = moved(users[0], values)
        node = users[0]
    found = values[node].reshape(-1, values[node].shape[-1])
    if sum(kind_of(user) != "sym_size" for user in node.users) != 1 or not bool((found == found[:1]).all()):
        return None
    order = torch.argsort(found[0])
    return (readers[node], order.reshape(heads, width)) if len(order) == heads * width else None


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
    return kind_of(node) in _SCALES and isinstance(node.args[1], float | int)


def _factor(node: fx.Node) -> float:
    if not _only_scales(node):
        return 1.0
    number = float(node.args[1])  # type: ignore[arg-type]
    return number if kind_of(node) == "mul" else 1 / number


def is_move(node: fx.Node) -> bool:
    """Whether it only moves numbers, or picks some."""
    return kind_of(node) in MOVES


def alone(chain: list[fx.Node], values: dict[fx.Node, Any], rows: set[int], shared_end: bool = False) -> bool:
    """Whether nobody else gets any of the rows; with `shared_end`, up to the last node of the chain."""
    for node, following in pairwise(chain):
        for user in node.users:
            if user is following or kind_of(user) == "sym_size":
                continue
            if kind_of(user) not in PICKS:
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


def seen_keys(attention: Attention, mask: Tensor | None, k: Tensor) -> Tensor:
    """(samples, keys) the share of the queries that see each key.

    Args:
        attention: where.
        mask: its mask, if it has one.
        k: (samples, heads, keys, width).
    """
    count, keys = k.shape[0], k.shape[2]
    if attention.causal:
        seen = torch.arange(keys, 0, -1, dtype=torch.float64, device=k.device) / keys
        return seen.expand(count, keys)
    if mask is None:
        return torch.ones(count, keys, dtype=torch.float64, device=k.device)
    seen = (mask if mask.dtype == torch.bool else mask > -1e4).double()
    while seen.dim() < 4:
        seen = seen.unsqueeze(0)
    seen = seen.mean((1, 2)).expand(-1, keys)
    return seen[:count] if len(seen) > 1 else seen.expand(count, keys)
