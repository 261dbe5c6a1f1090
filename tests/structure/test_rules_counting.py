"""Running sums and orders: other axes pass, the axis along which they run stays."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import free, held, network, pruned

RUNNING = {
    "cumsum": lambda x, dim: x.cumsum(dim),
    "cumsum_": lambda x, dim: x.clone().cumsum_(dim),
    "cumprod": lambda x, dim: x.cumprod(dim),
    "cummax": lambda x, dim: x.cummax(dim).values,
    "cummin": lambda x, dim: x.cummin(dim).values,
    "logcumsumexp": lambda x, dim: x.logcumsumexp(dim),
    "sort": lambda x, dim: x.sort(stable=True, dim=dim).values,
    "topk": lambda x, dim: x.topk(3, dim).values,
    "kthvalue": lambda x, dim: x.kthvalue(2, dim, keepdim=True).values,
    "median": lambda x, dim: x.median(dim, keepdim=True).values,
}


def over_tokens(function: Any, dim: int, width: int = 8) -> Any:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(function(self.first(x), dim))

    return network(forward, torch.randn(2, 5, 3), first=nn.Linear(3, 8), last=nn.Linear(width, 2))


@pytest.mark.parametrize("name", RUNNING)
def test_along_positions_channels_pass(name: str) -> None:
    assert free(pruned(over_tokens(RUNNING[name], 1), range(2))) == {"first": 8}


@pytest.mark.parametrize("name", ["cumsum", "cummax", "logcumsumexp"])
def test_along_channels_they_stay(name: str) -> None:
    structure = pruned(over_tokens(RUNNING[name], -1), range(1))
    assert not structure.prunable
    assert f"is ordered or counted by aten.{name}" in held(structure)["first"]


def test_of_heads() -> None:
    """Along the channels of every head: heads leave, their channels stay."""

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(self.first(x).view(2, 5, 4, 3).cumsum(-1).flatten(2))

    made = network(forward, torch.randn(2, 5, 3), first=nn.Linear(3, 12), last=nn.Linear(12, 2))
    assert sorted(free(pruned(made)).values()) == [4]


def test_all_at_once() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y) + y.median() + y.cumsum(1).msort().sum() * 0.1

    structure = pruned(
        network(forward, torch.randn(2, 5, 3), first=nn.Linear(3, 8), last=nn.Linear(8, 2)), range(1)
    )
    assert "aten.median" in held(structure)["first"]
