"""Names of groups say where: in which module layers meet, and at which operator; solving changes nothing of what was said."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

import prunus
from prunus.capture import capture
from prunus.structure.interpret import Run
from prunus.structure.solve import solve


class Block(nn.Module):
    """A residual block that adds in place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 6), nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(x)))
        y += x
        return y


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.between, self.head = nn.Linear(4, 8), nn.Linear(8, 10), nn.Linear(10, 2)
        self.first, self.second = nn.Sequential(Block(8), Block(8)), nn.Sequential(Block(10), Block(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(self.stem(x)))))


class Two(nn.Module):
    """Two sums in the model's own forward, and one block."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.block, self.head = Block(8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x) + self.b(x))
        return self.head(self.block(torch.tanh(self.c(x)) + self.d(x)))


def names(model: nn.Module, *sizes: int) -> list[str]:
    return [group.name for group in prunus.analyze(model, torch.randn(*sizes)).groups]


def test_groups_of_several_layers_are_called_after_the_place_where_they_meet():
    found = names(Stages(), 3, 4)
    assert found[:1] == ["first.add"] and "second.add" in found
    assert {"first.0.up", "first.1.up", "second.0.up", "head"} <= set(found)


def test_operators_of_one_forward_keep_their_numbers():
    found = names(Two(), 3, 8)
    assert found[0] == "add" and found[1] == "add_1"


def test_names_are_unique_and_serve_as_names():
    model, x = Stages(), torch.randn(3, 4)
    structure = prunus.analyze(model, x)
    every = [group.name for group in structure.groups]
    assert len(set(every)) == len(every)
    result = prunus.compress(model, x, ratio={"first.add": 0.5}, hold="second")
    assert {g.name: len(g.keep) for g in result.plan.groups} == {"first.add": 4}
    assert next(row.name for row in structure.layers()) == "first.add"


class Mixed(nn.Module):
    """A grid that has to be factorized into columns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale, self.b = nn.Linear(6, 12), nn.Parameter(torch.ones(4)), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b((self.a(x).view(-1, 3, 4) * self.scale).flatten(1))


def test_solving_leaves_what_was_said_alone():
    run = Run(capture(Mixed().eval(), torch.randn(2, 6))).run()
    before = copy.deepcopy(vars(run.labels))
    labels, _ = solve(run.labels)
    after = vars(run.labels)
    assert before["count"] == after["count"]
    for name in ("edges", "contains", "holds", "locks", "grids", "made"):
        assert len(before[name]) == len(after[name]), name
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(before["edges"], after["edges"], strict=True))
    again, _ = solve(run.labels)
    assert labels.count == again.count and len(labels.edges) == len(again.edges)
