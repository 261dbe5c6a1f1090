"""Packed projections whose batch and heads, or tokens, are merged before the parts are told apart."""

import pytest
import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import free, network, pruned

HEADS, WIDTH, SIDE = 2, 4, 3


def merged(x: Tensor) -> tuple[Tensor, ...]:
    """(3, N, heads, L, width) -> queries, keys and values of (N * heads, L, width)."""
    return x.reshape(3, x.shape[1] * HEADS, SIDE * SIDE, -1).unbind(0)


def in_rows(x: Tensor) -> tuple[Tensor, ...]:
    """The same, by way of a map, and chosen by index."""
    x = x.reshape(3, -1, SIDE, SIDE, x.shape[-1]).flatten(2, 3)
    return x[0], x[1], x[2]


@pytest.mark.parametrize("split", [merged, in_rows])
@pytest.mark.parametrize("relative", [False, True])
def test_queries_and_values_shrink_on_their_own(split: object, relative: bool) -> None:
    """As in backbones with decomposed relative positions: queries meet a table along their channels."""

    def forward(self: Do, x: Tensor) -> Tensor:
        n = x.shape[0]
        packed = self.qkv(self.first(x)).reshape(n, SIDE * SIDE, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = split(packed)  # type: ignore[operator]
        scores = (q * 0.5) @ k.transpose(-2, -1)
        if relative:
            at = torch.arange(SIDE)
            table = self.table[at[:, None] - at[None] + SIDE - 1]
            there = torch.einsum("bhwc,hkc->bhwk", q.reshape(n * HEADS, SIDE, SIDE, -1), table)
            scores = (scores.view(-1, SIDE, SIDE, SIDE, SIDE) + there[..., None]).view(scores.shape)
        y = (scores.softmax(-1) @ v).view(n, HEADS, SIDE * SIDE, -1).transpose(1, 2).flatten(2)
        return self.last(y.mean(1))

    width = HEADS * WIDTH
    parts = {"first": nn.Linear(5, 6), "qkv": nn.Linear(6, 3 * width), "last": nn.Linear(width, 2)}
    made = network(forward, torch.randn(2, SIDE * SIDE, 5), table=torch.randn(2 * SIDE - 1, WIDTH), **parts)
    sizes = free(pruned(made, range(3)))
    queries = WIDTH if relative else width  # a table has the channels of all heads
    assert sorted(sizes.values()) == sorted([HEADS, queries, width, 6])
