"""Tensors that are made empty and written to in parts, distances, diagonals: they follow what lies in them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import conv, free, image, network, pruned
from tests.structure.sweep import outcome, side_by_side

POINTS = torch.linspace(-1, 2, 40).view(5, 8)


def swapped(v: Tensor) -> Tensor:
    made = torch.zeros_like(v)
    made[:, :3] = v[:, 5:]
    made[:, 3:] = v[:, :5]
    return made


def half(v: Tensor) -> Tensor:
    """Fewer channels of the tensor that it is like than of others."""
    made = torch.full_like(v, 0.5)
    made[:, 2:] = v[:, :6].sigmoid()
    return made


def turned(v: Tensor) -> Tensor:
    made = torch.empty_like(v)
    made[:, ::2], made[:, 1::2] = -v[:, 1::2], v[:, ::2]
    return made


VECTORS: Mapping[str, Any] = {
    "unequal slices": swapped,
    "part of its own": half,
    "every other": turned,
    "added": lambda v: v + torch.ones_like(v),
    "distances": lambda v: torch.cdist(v, POINTS),
    "absolute distances": lambda v: torch.cdist(v, POINTS, p=1.0),
    "distances in batches": lambda v: torch.cdist(v[:, None], POINTS[None])[:, 0],
    "diagonal": lambda v: torch.diag_embed(v).sum(1),
    "in front": lambda v: torch.diag_embed(v, dim1=0, dim2=2).sum(0),
}


def test_what_is_written_in_parts_follows_its_parts() -> None:
    made = side_by_side(VECTORS, torch.linspace(-2, 2, 15).view(3, 5), lambda: nn.Linear(5, 8))
    assert outcome(pruned(made, range(2)), VECTORS) == dict.fromkeys(VECTORS, "")


def test_spectra_are_written_into_zeros() -> None:
    """Two corners of a spectrum, each with complex weights of its own."""

    def spectral(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        f = torch.fft.rfft2(x)
        made = torch.zeros(x.shape[0], 6, x.shape[2], x.shape[3] // 2 + 1, dtype=torch.cfloat)
        made[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, :2, :2], first)
        made[:, :, -2:, :2] = torch.einsum("bixy,ioxy->boxy", f[:, :, -2:, :2], second)
        return torch.fft.irfft2(made, s=x.shape[-2:])

    def forward(self: Do, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last((spectral(x, self.one, self.two) + self.second(x)).relu())

    weights = {name: torch.randn(4, 6, 2, 2, dtype=torch.cfloat) for name in ("one", "two")}
    made = network(forward, image(size=8), first=conv(3, 4), second=conv(4, 6), last=conv(6, 2), **weights)
    sizes = free(pruned(made, range(2)))
    assert sorted(sizes.values()) == [4, 6]
