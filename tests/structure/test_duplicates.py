"""Tensors that are joined to themselves, and then laid out in rows in more than one way."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import conv, free, image, network, pruned

Function = Callable[[Tensor], Tensor]


def _twice(v: Tensor) -> Tensor:
    return torch.cat([v, v], 1)


def _to_space(v: Tensor) -> Tensor:
    return F.pixel_shuffle(v, 2).mean((2, 3))


def _shuffled(v: Tensor) -> Tensor:
    return F.channel_shuffle(v, 2).mean((2, 3))


def _pairs(v: Tensor) -> Tensor:
    return v.unflatten(1, (8, 2)).amax(2).mean((2, 3))


CASES: dict[str, tuple[Function, Function, Function, int, dict[str, int]]] = {
    "to space and shuffled": (_twice, _to_space, _shuffled, 1, {"pixel_shuffle": 2}),
    "in groups": (_twice, _to_space, _shuffled, 2, {"pixel_shuffle": 2}),
    "repeated": (lambda v: v.repeat(1, 2, 1, 1), _to_space, _shuffled, 1, {"pixel_shuffle": 2}),
    "chosen twice": (lambda v: v[:, [*range(8)] * 2], _to_space, _shuffled, 1, {"pixel_shuffle": 2}),
    "one by one": (lambda v: v.repeat_interleave(2, 1), _to_space, _shuffled, 1, {}),
    "backwards": (lambda v: torch.cat([v, v.flip(1)], 1), _to_space, _shuffled, 1, {}),
    "maxima": (_twice, _pairs, _shuffled, 1, {"amax[rows]": 4}),
    "from space to space": (lambda v: F.pixel_unshuffle(v[:, :4], 2), _to_space, _shuffled, 1, {"first": 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_copy_leaves_or_none(name: str) -> None:
    double, one, other, groups, expected = CASES[name]

    def forward(self: Do, x: Tensor) -> Any:
        v = double(self.first(x))
        v = self.second(v) + v
        return self.head(one(v)), self.tail(other(v))

    width = one(torch.zeros(1, 16, 4, 4)).shape[1]
    parts = {"head": nn.Linear(width, 3), "tail": nn.Linear(16, 3)}
    made = network(forward, image(), first=conv(3, 8), second=conv(16, 16, groups=groups), **parts)
    assert free(pruned(made, range(2))).items() >= expected.items()


def test_a_tensor_repeated_along_its_channels_takes_nothing_along_other_axes() -> None:
    made = network(
        lambda self, x: self.head(self.first(x).mean((2, 3)).repeat(1, 3)),
        image(),
        first=conv(3, 8),
        head=nn.Linear(24, 2),
    )
    assert free(pruned(made, range(2))) == {"first": 8}
