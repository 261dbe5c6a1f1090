"""Slabs that cut across what leaves together: nothing is removed in a way that leaves an axis ragged."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import prunus
from prunus.structure.bound import astray


def test_a_slab_that_takes_a_member_without_its_binder_is_astray() -> None:
    # 4 and 5 are rows of 0..3, 6 is a column, 7 takes row 4 and more, 8 takes the column that 6 is
    slab = np.array([4, 4, 5, 5, 6, 6, 7, 7, 8])
    member = np.array([0, 1, 2, 3, 0, 2, 4, 9, 6])
    bound = np.array([4, 4, 5, 5]), np.array([0, 1, 2, 3])
    assert astray(slab, member, bound, 10).tolist() == [6, 8]
    nothing = np.zeros(0, int)
    assert astray(slab, member, (nothing, nothing), 10).tolist() == []


def assert_prunable(model: nn.Module, x: Tensor, **options: bool) -> None:
    """Every group that is offered goes down to half of its units, with those that are tied to it, and the result is verified."""
    structure = prunus.analyze(model.eval(), x, **options)
    halves = {}
    for group in structure.prunable:
        rows = np.arange(group.size)[None] if group.rows is None else group.rows
        halves[group.name] = np.sort(rows[:, : rows.shape[1] // 2].reshape(-1)).tolist()
    assert halves
    for group in structure.prunable:
        kept = {name: halves[name] for name in (group.name, *group.tied)}
        made = prunus.plan(structure, method=prunus.ByIndex(keep=kept))
        verification = prunus.apply(model, made).report.verification
        assert verification is not None and verification["passed"]


class Outer(nn.Module):
    """An outer product, laid flat, is added to channels that share columns with others."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 12))
        self.a, self.b, self.head = nn.Linear(6, 2), nn.Linear(6, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.embed(x).view(-1, 2, 6).unbind(1)
        grid = self.a(first).unsqueeze(2) * self.b(first).unsqueeze(1)
        y = torch.cat([first + grid.flatten(1), second], 1)
        return self.head(y - y.view(-1, 2, 6).norm(dim=2).mean(1, keepdim=True))


class Unshuffled(nn.Module):
    """Channels made of positions in space meet others that a convolution in groups ties."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.PixelUnshuffle(2)
        self.value, self.grouped = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 4, 3, padding=1, groups=4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.first(x))
        return self.head(self.grouped(self.value(x).tanh() + x).mean((2, 3)))


class Repacked(nn.Module):
    """Parts that are taken apart, joined again, and laid out in the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.b, self.head = (nn.Linear(*s) for s in ((5, 12), (6, 6), (2, 12), (12, 4)))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.embed(x).view(-1, 2, 6).unbind(1)
        y = torch.cat([first + self.a(first), second], 1)
        return self.head(y + self.b(y.view(-1, 2, 6).norm(dim=2)))


@pytest.mark.parametrize("keep_class", [False, True])
@pytest.mark.parametrize(
    ("model", "shape"),
    [(Outer, (2, 5)), (Unshuffled, (1, 3, 8, 8)), (Repacked, (2, 5))],
    ids=["outer product", "pixel unshuffle", "repacked"],
)
def test_what_cuts_across_is_left_alone(
    model: type[nn.Module], shape: tuple[int, ...], keep_class: bool
) -> None:
    torch.manual_seed(0)
    assert_prunable(model(), torch.randn(shape), keep_class=keep_class)
