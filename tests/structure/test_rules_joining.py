"""Concatenation under its other names."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import free, network, pruned

# two values (2, 4) to one; how many units go, and how wide the result is
JOINED: dict[str, Any] = {
    "hstack": (lambda a, b: torch.hstack([a, b]), [4, 4], 8),
    "column_stack": (lambda a, b: torch.column_stack([a, b]), [4, 4], 8),
    "vstack": (lambda a, b: torch.vstack([a, b]), [4], 4),
    "dstack": (lambda a, b: torch.dstack([a[..., None], b[..., None]]).sum(-1), [4], 4),
}


@pytest.mark.parametrize("name", JOINED)
def test_names_of_concatenation(name: str) -> None:
    function, sizes, width = JOINED[name]

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(function(self.one(x), self.two(x)))

    parts = {"one": nn.Linear(3, 4), "two": nn.Linear(3, 4), "last": nn.Linear(width, 2)}
    structure = pruned(network(forward, torch.randn(2, 3), **parts), range(2))
    assert sorted(free(structure).values()) == sizes


@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_meshgrid(indexing: str) -> None:
    """Rows and columns of a table, each made by a layer."""

    def forward(self: Do, x: Tensor) -> Tensor:
        rows, columns = self.one(x).mean(0), self.two(x).mean(0)
        grid = torch.stack(torch.meshgrid(rows, columns, indexing=self.indexing), -1).sum(-1)
        grid = grid if self.indexing == "ij" else grid.T
        return self.last(self.three(x) @ grid) * self.four(x)

    parts = {
        "one": nn.Linear(3, 4),
        "two": nn.Linear(3, 6),
        "three": nn.Linear(3, 4),
        "last": nn.Linear(6, 2),
        "four": nn.Linear(3, 2),
    }
    made = network(forward, torch.randn(2, 3), **parts)
    made.model.indexing = indexing
    assert sorted(free(pruned(made)).values()) == [4, 6]
