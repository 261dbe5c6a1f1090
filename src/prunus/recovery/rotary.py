"""Queries that turn with their position on the way: pairs of their dimensions, and what may be done to them before they turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from prunus.capture import Captured
from prunus.evidence.interpret import Pass, ancestors
from prunus.recovery.attention import Queries, alone, is_move, moved, numbered
from prunus.recovery.layers import Layer

__all__ = ["Turning", "turning_queries"]

_SAME = 1e-4  # relative, in single precision


@dataclass(frozen=True, eq=False)
class Turning:
    """Queries that are turned pair by pair between the layer that makes them and the product with the keys.

    A matrix commutes with all turns if it does to each pair of dimensions what a complex number does, and anything to dimensions
    that do not turn.

    Attributes:
        queries: where they come from.
        first, second: (pairs,) dimensions of each pair.
        still: dimensions that do not turn.
    """

    queries: Queries
    first: Tensor
    second: Tensor
    still: Tensor

    def nearest(self, m: Tensor) -> Tensor:
        """The nearest matrix that commutes with the turns, for (heads, width, width) ones: an orthogonal projection."""
        i, j, s = self.first, self.second, self.still
        found = torch.zeros_like(m)
        found[:, i, i] = found[:, j, j] = (m[:, i, i] + m[:, j, j]) / 2
        found[:, i, j] = (m[:, i, j] - m[:, j, i]) / 2
        found[:, j, i] = -found[:, i, j]
        found[:, s[:, None], s] = m[:, s[:, None], s]
        return found


def turning_queries(
    small: Captured, query: fx.Node, value: Tensor, layers: dict[fx.Node, Layer], leaves: tuple[Any, ...]
) -> Turning | None:  # fmt: skip
    """The layer and the pairs of queries that turn, found out by turning random numbers.

    Args:
        small: the network.
        query: what is multiplied with the keys.
        value: of it: (batch, heads, tokens, width).
        layers: of the network.
        leaves: values of the graph's inputs, for what says by how much to turn.

    Returns:
        None where anything else happens between the layer and the product.
    """
    before, sizes = ancestors({query}), tuple(value.shape)
    sources = _nearest_layers(query, layers)
    if len(sources) != 1:
        return None
    layer = layers[sources.pop()]
    if layer.transposed:
        return None
    chain, values = _moves_from(layer, before)
    while chain and _by_head(values[chain[-1]], sizes) is None:
        chain.pop()
    if not chain:
        return None
    start = chain[-1]
    rows = _by_head(values[start], sizes)
    assert rows is not None
    if not alone(chain, values, set(rows.flatten().tolist()), shared_end=True):
        return None
    between = _between(start, query, before)
    if between is None:
        return None
    outside = {n for node in between for n in node.all_input_nodes} - {*between, start}
    if ancestors(outside) & layers.keys():
        return None  # what turns them depends on more than positions
    known = _evaluated(small, outside, leaves)
    found = _pairs(lambda x: _run(between, {**known, start: x}), _example(values[start], value))
    return None if found is None else Turning(Queries(layer, rows, 1.0), *found)


def _nearest_layers(query: fx.Node, layers: dict[fx.Node, Layer]) -> set[fx.Node]:
    found, seen, queue = set(), set(), [query]
    while queue:
        node = queue.pop()
        if node in layers:
            found.add(node)
        elif node not in seen:
            seen.add(node)
            queue += node.all_input_nodes
    return found


def _moves_from(layer: Layer, before: set[fx.Node]) -> tuple[list[fx.Node], dict[fx.Node, Any]]:
    """The layer and what only moves its outputs towards the queries, with the number of the channel at each place."""
    chain: list[fx.Node] = [layer.node]
    values: dict[fx.Node, Any] = {layer.node: numbered(layer)}
    while True:
        following = [user for user in chain[-1].users if user in before]
        if len(following) != 1 or not is_move(following[0]):
            return chain, values
        chain.append(following[0])
        values[following[0]] = moved(following[0], values)


def _by_head(numbers: Any, sizes: tuple[int, ...]) -> Tensor | None:
    """(heads, width) numbers of channels; None where these do not lie along two of four axes."""
    if not isinstance(numbers, Tensor) or numbers.dim() != 4:
        return None
    first = [numbers.select(axis, 0) for axis in range(4)]
    varying = [axis for axis in range(4) if not bool((numbers == first[axis].unsqueeze(axis)).all())]
    if len(varying) != 2:
        return None
    others = [axis for axis in range(4) if axis not in varying]
    found = numbers.permute(*others, *varying)[0, 0]
    return found if tuple(found.shape) == (sizes[1], sizes[3]) else None


def _between(start: fx.Node, query: fx.Node, before: set[fx.Node]) -> list[fx.Node] | None:
    """All that is computed from the one on the way to the other, in order; None if it is used elsewhere."""
    found, queue = {start}, [start]
    while queue:
        node = queue.pop()
        for user in node.users:
            if user not in before:
                return None
            if user not in found:
                found.add(user)
                queue += [user] if user is not query else []
    if query not in found or sum(not _measures(user) for user in query.users) != 1:
        return None
    return [node for node in start.graph.nodes if node in found and node is not start]


def _measures(node: fx.Node) -> bool:
    return str(node.target).startswith("aten.sym_")


def _evaluated(small: Captured, nodes: set[fx.Node], leaves: tuple[Any, ...]) -> dict[fx.Node, Any]:
    found: dict[fx.Node, Any] = {}

    def look(node: fx.Node, value: Any) -> None:
        if node in nodes:
            found[node] = value

    with torch.no_grad():
        Pass(small, ancestors(nodes)).run(dict(zip(small.inputs, leaves, strict=True)), look)
    return found


def _run(nodes: list[fx.Node], values: dict[fx.Node, Any]) -> Tensor:
    with torch.no_grad():
        for node in nodes:
            args, kwargs = (map_arg(a, values.__getitem__) for a in (node.args, node.kwargs))
            values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[nodes[-1]]


def _example(numbers: Tensor, like: Tensor) -> tuple[Tensor, int]:
    """Random numbers in the shape of a value, whose heads stand along axis 1 or behind the tokens; and the tokens' axis."""
    heads_first = bool(
        (numbers.select(2, 0).unsqueeze(2) == numbers).all()
    )  # nothing differs along axis 2: tokens
    batch, heads, tokens, width = like.shape
    shape = (batch, heads, tokens, width) if heads_first else (batch, tokens, heads, width)
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator).to(like), 2 if heads_first else 1


def _pairs(turn: Any, example: tuple[Tensor, int]) -> tuple[Tensor, Tensor, Tensor] | None:
    """First and second dimensions of the pairs, and those that do not turn; None if it does not go pair by pair."""
    x, axis = example
    try:
        turned = turn(x)
    except RuntimeError:
        return None  # shapes that depend on more than that
    heads_of = (lambda y: y) if axis == 2 else (lambda y: y.transpose(1, 2))
    if turned.shape != heads_of(x).shape or not turned.is_floating_point():
        return None
    still = (turned == heads_of(x)).all(0).all(0).all(0)
    moving = torch.nonzero(~still)[:, 0]
    for first, second in _pairings(moving):
        found = first, second, torch.nonzero(still)[:, 0]
        mixed = _mixed(x, *found)
        wanted = _mixed(turned, *found)
        error = torch.linalg.vector_norm(turn(mixed) - wanted) / torch.linalg.vector_norm(wanted)
        if float(error) <= _SAME:
            return found
    return None


def _pairings(moving: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The two that are in use: halves, and neighbours."""
    if len(moving) % 2 == 0:
        half = len(moving) // 2
        yield moving[:half], moving[half:]
        yield moving[::2], moving[1::2]


def _mixed(x: Tensor, first: Tensor, second: Tensor, still: Tensor) -> Tensor:
    """Each pair times a complex number of its own; the others mixed at random."""
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(len(first), generator=generator).to(x) for _ in range(2))
    square = torch.randn(len(still), len(still), generator=generator).to(x)
    result = x.clone()
    result[..., first] = a * x[..., first] - b * x[..., second]
    result[..., second] = b * x[..., first] + a * x[..., second]
    result[..., still] = x[..., still] @ square
    return result
