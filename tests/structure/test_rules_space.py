"""Channels that a convolution takes for positions in space: free under a kernel that sees one position, else held."""

from typing import Any

import pytest
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned

ALONE: dict[str, nn.Module] = {
    "one position": nn.Conv1d(16, 2, 1),
    "in groups": nn.Conv1d(16, 4, 1, groups=2),
    "padding by name": nn.Conv1d(16, 2, 1, padding="same"),
    "transposed": nn.ConvTranspose1d(16, 2, 1),
    "transposed in groups": nn.ConvTranspose1d(16, 4, 1, groups=4),
}
NEIGHBORS: dict[str, nn.Module] = {
    "three positions": nn.Conv1d(16, 2, 3, padding=1),
    "every other": nn.Conv1d(16, 2, 1, stride=2),
    "padded": nn.Conv1d(16, 2, 1, padding=1),
    "transposed, more room": nn.ConvTranspose1d(16, 2, 1, stride=2, output_padding=1),
}


def over_channels(layer: nn.Module) -> Any:
    """(N, 8, 4, 4) to (N, 16 positions, 8 channels), convolved along the channels, and a head over what comes out."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.layer(self.first(x).flatten(2).transpose(1, 2))
        return self.last(x.transpose(1, 2).unsqueeze(-1).mean(2, keepdim=True))

    return forward, {"first": conv(3, 8), "layer": layer}


@pytest.mark.parametrize("name", ALONE)
def test_a_kernel_of_one_position_passes_channels_on(name: str) -> None:
    forward, parts = over_channels(ALONE[name])
    structure = pruned(network(forward, image(), **parts, last=conv(8, 2)))
    assert free(structure)["first"] == 8


@pytest.mark.parametrize("name", NEIGHBORS)
def test_neighbors_hold_each_other(name: str) -> None:
    forward, parts = over_channels(NEIGHBORS[name])
    width = {"every other": 4, "padded": 10, "transposed, more room": 16}.get(name, 8)
    structure = pruned(network(forward, image(), **parts, last=conv(width, 2)))
    assert held(structure)["first"].startswith("is a position in space for a convolution")


def test_in_two_dimensions_one_of_them() -> None:
    """A kernel of size (1, 3) over (positions, channels): positions meet, channels with their neighbors."""

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.first(x).flatten(2)[:, None]  # (N, 1, channels, positions)
        return self.last(self.layer(x)[:, 0].unsqueeze(-1))

    parts = {"first": conv(3, 8), "layer": nn.Conv2d(1, 1, (1, 3), padding=(0, 1)), "last": conv(8, 2)}
    structure = pruned(network(forward, image(), **parts))
    assert free(structure)["first"] == 8
