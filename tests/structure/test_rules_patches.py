"""Unfold and fold: channels pass, positions of the kernel and of the map stay."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned


@pytest.mark.parametrize("padding", [0, 1])
def test_unfold_and_a_layer_over_the_patches(padding: int) -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(F.unfold(self.first(x), 3, padding=padding).transpose(1, 2))

    structure = pruned(network(forward, image(), first=conv(3, 8), last=nn.Linear(72, 2)))
    assert free(structure) == {"first": 8}
    assert list(held(structure)) == ["last"]


def test_unfold_then_fold() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        patches = F.unfold(self.first(x), 3, padding=1).relu()
        return self.last(F.fold(patches, (4, 4), 3, padding=1))

    structure = pruned(network(forward, image(), first=conv(3, 8), last=conv(8, 2)))
    assert free(structure) == {"first": 8}


def test_fold_of_what_a_layer_makes() -> None:
    """All taps of a channel leave together."""

    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(F.fold(self.first(x).transpose(1, 2), (4, 4), 2, stride=2))

    structure = pruned(network(forward, torch.randn(2, 4, 5), first=nn.Linear(5, 24), last=conv(6, 2)))
    assert sorted(free(structure).values()) == [6]


def test_the_unbatched_form() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        patches = F.unfold(self.first(x)[0], 2)
        return self.last(F.fold(patches, (4, 4), 2)[None])

    structure = pruned(network(forward, image()[:1], first=conv(3, 8), last=conv(8, 2)))
    assert free(structure) == {"first": 8}


def test_dilated_and_strided_patches() -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        patches = F.unfold(self.first(x), (2, 3), dilation=(2, 1), stride=(1, 2), padding=(0, 1))
        return self.last(patches.mean(2))

    structure = pruned(network(forward, image(), first=conv(3, 6), last=nn.Linear(36, 2)))
    assert free(structure) == {"first": 6}


class Outlook(nn.Module):
    """Attention of every position over its neighborhood, weights made from the position alone."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.v = nn.Linear(width, width)
        self.attend = nn.Linear(width, heads * 81)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        v = F.unfold(self.v(x).permute(0, 3, 1, 2), 3, padding=1)
        v = v.reshape(n, self.heads, c // self.heads, 9, h * w).permute(0, 1, 4, 3, 2)
        weights = self.attend(x).reshape(n, h * w, self.heads, 9, 9).permute(0, 2, 1, 3, 4)
        mixed = (weights * 0.5).softmax(-1) @ v
        mixed = mixed.permute(0, 1, 4, 3, 2).reshape(n, c * 9, h * w)
        return self.out(F.fold(mixed, (h, w), 3, padding=1).permute(0, 2, 3, 1))


def test_outlook_attention() -> None:
    """The width, the heads and the channels of the values; the positions that are attended to stay."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((x + self.attention(x)).mean((1, 2)))

    made = network(
        forward, torch.randn(2, 4, 4, 3), first=nn.Linear(3, 8), attention=Outlook(8, 2), last=nn.Linear(8, 2)
    )
    structure = pruned(made)
    kinds = {(group.size, group.row_count, group.outer) for group in structure.prunable}
    assert kinds == {(8, 1, False), (8, 2, False), (2, 1, True)}
