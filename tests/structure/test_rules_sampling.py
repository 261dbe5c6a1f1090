"""Maps that are looked at in places that other layers, or the caller, choose: channels pass."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned

ops = pytest.importorskip("torchvision").ops


def deformed(groups: int, shifts: int, masked: bool) -> Any:
    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.first(x)
        mask = self.mask(x).sigmoid() if masked else None
        return self.last(self.deform(x, self.shift(x), mask).relu())

    parts = {
        "first": conv(3, 8),
        "shift": conv(8, 18 * shifts),
        "deform": ops.DeformConv2d(8, 6, 3, padding=1, groups=groups),
        "last": conv(6, 2),
    }
    return network(forward, image(), **parts, **({"mask": conv(8, 9 * shifts)} if masked else {}))


@pytest.mark.parametrize(("groups", "shifts", "masked"), [(1, 1, False), (1, 2, True), (2, 1, True)])
def test_a_deformable_convolution_loses_inputs_and_filters(groups: int, shifts: int, masked: bool) -> None:
    structure = pruned(deformed(groups, shifts, masked), range(3))
    made = {group.name: group.size for group in structure.prunable if not group.outer}
    assert sorted(made.values()) == ([6, 8] if groups == 1 else [4, 6])
    assert held(structure)["shift"].startswith("says where a deformable convolution looks")


def unpooled(self: Do, x: Tensor) -> Tensor:
    small, places = F.max_pool2d(self.first(x), 2, return_indices=True)
    return self.last(F.max_unpool2d(small.tanh(), places, 2))


def aligned(self: Do, x: Tensor) -> Tensor:
    boxes = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 0, 3, 2]])
    return self.last(ops.roi_align(self.first(x), boxes, 2))


def highest(self: Do, x: Tensor) -> Tensor:
    boxes = torch.tensor([[0.0, 0, 0, 3, 3], [1, 1, 0, 3, 2]])
    return self.last(ops.roi_pool(self.first(x), boxes, 2))


@pytest.mark.parametrize("forward", [unpooled, aligned, highest])
def test_channels_pass(forward: Any) -> None:
    assert free(pruned(network(forward, image(), first=conv(3, 8), last=conv(8, 2)), range(2)))["first"] == 8
