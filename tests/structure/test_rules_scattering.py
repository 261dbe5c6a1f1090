"""Reading and writing at indices: the indexed axis stays, the others pass."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prunus.structure import Structure
from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned

PLACES = torch.tensor([3, 0, 4])


def wide(index: Tensor, x: Tensor) -> Tensor:
    """(L') positions for every sample and channel of (N, L, C)."""
    return index[None, :, None].expand(x.shape[0], -1, x.shape[2])


def chosen(x: Tensor) -> Tensor:
    """Positions that depend on what is there, (N, 3, C)."""
    return x.argsort(1)[:, :3]


# writes what `y` has at 3 positions to 3 positions of `x`; both are (N, 5, 8)
ALONG_POSITIONS: dict[str, Any] = {
    "scatter": lambda x, y: x.scatter(1, wide(PLACES, x), y[:, :3]),
    "scatter by content": lambda x, y: x.scatter(1, x.argsort(1), y),
    "scatter a number": lambda x, y: x.scatter(1, wide(PLACES, x), 0.5) + y,
    "scatter in place": lambda x, y: x.clone().scatter_(1, wide(PLACES, x), y[:, :3]),
    "scatter_add": lambda x, y: x.scatter_add(1, wide(PLACES, x), y[:, :3]),
    "scatter_add to zeros": lambda x, y: torch.zeros_like(x).scatter_add(1, x.argsort(1), y),
    "scatter_reduce": lambda x, y: x.scatter_reduce(1, wide(PLACES, x), y[:, :3], "amax"),
    "index_add": lambda x, y: x.index_add(1, PLACES, y[:, :3], alpha=2),
    "index_copy": lambda x, y: x.index_copy(1, PLACES, y[:, :3]),
    "index_fill": lambda x, y: x.index_fill(1, PLACES, 0.5) + y,
    "index_reduce": lambda x, y: x.index_reduce(1, PLACES, y[:, :3], "amin"),
    "index_put": lambda x, y: x.index_put((torch.tensor([0, 1]), torch.tensor([2, 3])), y[:, 0]),
    "index_put and add": lambda x, y: x.index_put((torch.tensor([1]),), y[:1], accumulate=True),
    "assignment": lambda x, y: assigned(x, (slice(None), PLACES), y[:, :3]),
    "assignment of a line": lambda x, y: assigned(x, (slice(None), PLACES), y[:, :1]),
    "assignment by a mask": lambda x, y: assigned(x, (x.mean(-1) > 0.1,), y[0, 0]),
    "gather": lambda x, y: x.gather(1, wide(PLACES, x)).sum(1, keepdim=True) + y,
    "gather by content": lambda x, y: x.gather(1, y.argsort(1)),
    "take_along_dim": lambda x, y: x.take_along_dim(y.argsort(1), 1),
    "masked_fill": lambda x, y: x.masked_fill(y > 0, 0.5),
    "masked_fill of positions": lambda x, y: x.masked_fill(torch.arange(5)[:, None] > 2, 0.5) + y,
    "where": lambda x, y: torch.where(x > y, x, y * 2),
    "where positions": lambda x, y: torch.where(torch.arange(5)[:, None] > 2, x, y),
}


def assigned(x: Tensor, index: Any, value: Tensor) -> Tensor:
    x = x.clone()
    x[index] = value
    return x


def two(function: Any) -> Any:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(function(self.one(x), self.two(x)))

    parts = {"one": nn.Linear(3, 8), "two": nn.Linear(3, 8), "last": nn.Linear(8, 2)}
    return network(forward, torch.randn(2, 5, 3), **parts)


@pytest.mark.parametrize("name", ALONG_POSITIONS)
def test_along_positions_channels_pass(name: str) -> None:
    structure = pruned(two(ALONG_POSITIONS[name]), range(2))
    assert sorted(free(structure).values()) == [8], str(structure)


# the same along channels
ALONG_CHANNELS: dict[str, Any] = {
    "scatter": lambda x, y: x.scatter(2, PLACES.expand(2, 5, 3), y[..., :3]),
    "scatter by content": lambda x, y: x.scatter(2, x.argsort(1).remainder(8), y),
    "scatter_add": lambda x, y: x.scatter_add(2, PLACES.expand(2, 5, 3), y[..., :3]),
    "index_add": lambda x, y: x.index_add(2, PLACES, y[..., :3]),
    "index_copy": lambda x, y: x.index_copy(-1, PLACES, y[..., :3]),
    "index_fill": lambda x, y: x.index_fill(2, PLACES, 0.5) + y,
    "assignment": lambda x, y: assigned(x, (..., PLACES), y[..., :3]),
}


@pytest.mark.parametrize("name", ALONG_CHANNELS)
def test_along_channels_they_stay(name: str) -> None:
    structure = pruned(two(ALONG_CHANNELS[name]), range(1))
    # what is not written anywhere may go
    assert all(modules == ("two",) and size == 5 for modules, size in left(structure)), str(structure)
    assert "to which an index writes" in held(structure)["one"]


def left(structure: Structure) -> list[tuple[tuple[str, ...], int]]:
    return [(group.modules, group.size) for group in structure.prunable]


def test_a_part_of_the_channels() -> None:
    """Only three channels are written, along positions: what is not written from may go, and nothing fails."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.last(x.scatter(1, x[..., :3].argsort(1), self.two(x)[..., :3]))

    parts = {"one": nn.Linear(3, 8), "two": nn.Linear(8, 8), "last": nn.Linear(8, 2)}
    assert left(pruned(network(forward, torch.randn(2, 5, 3), **parts))) == [(("two",), 5)]


def test_what_is_written_has_no_channels_to_lose() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(assigned(self.one(x), (slice(None), PLACES), x[:, :3]))

    structure = pruned(
        network(forward, torch.randn(2, 5, 8), one=nn.Linear(8, 8), last=nn.Linear(8, 2)), range(1)
    )
    assert not structure.prunable
    assert "combined with a value" in held(structure)["one"]


@pytest.mark.parametrize("name", ["tril", "triu"])
def test_triangles(name: str) -> None:
    """Positions of the last two axes stay; heads pass."""

    def forward(self: Do, x: Tensor) -> Tensor:
        scores = getattr(self.first(x), name)(1)
        return self.last(scores)

    structure = pruned(network(forward, image(), first=conv(3, 8), last=conv(8, 2)), range(2))
    assert free(structure) == {"first": 8}

    def over_channels(self: Do, x: Tensor) -> Tensor:
        return self.last(getattr(self.first(x), name)())

    structure = pruned(
        network(over_channels, torch.randn(2, 5, 3), first=nn.Linear(3, 8), last=nn.Linear(8, 2)), range(1)
    )
    assert "triangle is cut out" in held(structure)["first"]
