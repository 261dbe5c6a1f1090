"""Fourier transforms over positions pass channels; over channels they hold them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.property.form import Do
from tests.structure.families import conv, free, held, image, network, pruned


def global_filter(self: Do, x: Tensor) -> Tensor:
    """A product in frequency space, with a filter for every channel."""
    x = self.first(x).permute(0, 2, 3, 1)
    there = torch.fft.rfft2(x, dim=(1, 2), norm="ortho")
    filters = torch.view_as_complex(self.filters) if self.pairs else self.filters
    back = torch.fft.irfft2(there * filters, s=x.shape[1:3], dim=(1, 2), norm="ortho")
    return self.last(back.permute(0, 3, 1, 2))


@pytest.mark.parametrize("pairs", [True, False])
def test_a_global_filter(pairs: bool) -> None:
    """A parameter of complex numbers, or of pairs that are viewed as such."""
    filters = torch.randn(4, 3, 8, 2) if pairs else torch.randn(4, 3, 8, dtype=torch.complex64)
    made = network(global_filter, image(), first=conv(3, 8), last=conv(8, 2), filters=filters, pairs=pairs)
    assert sorted(free(pruned(made)).values()) == [8]


# real maps (N, C, H, W) to such, without touching axis 1
OVER_SPACE: dict[str, Any] = {
    "fft": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2) * 2, dim=2).real,
    "fft2": lambda x: torch.fft.ifft2(torch.fft.fft2(x).imag * 1j).imag,
    "rfft": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=4),
    "rfft2": lambda x: torch.fft.irfft2(torch.fft.rfft2(x, norm="ortho")),
    "rfftn": lambda x: torch.fft.irfftn(torch.fft.rfftn(x, dim=(2, 3)), s=(4, 4), dim=(2, 3)),
    "the last axes": lambda x: torch.fft.irfftn(torch.fft.rfftn(x, s=(4, 4)), s=(4, 4)),
    "fftn": lambda x: torch.fft.ifftn(torch.fft.fftn(x, dim=(-1,)).abs(), dim=(-1,)).real,
    "hfft": lambda x: torch.fft.hfft(torch.fft.ihfft(x), n=4),
    "shift": lambda x: torch.fft.ifftshift(torch.fft.fftshift(x, dim=(2, 3)) * 2, dim=(2,)),
    "both parts": lambda x: torch.view_as_real(torch.fft.fft2(x)).sum(-1),
    "amplitude and phase": lambda x: torch.fft.irfft2(amplified(torch.fft.rfft2(x))),
    "two parts": lambda x: torch.complex(x, x.cos()).abs(),
}


def amplified(x: Tensor) -> Tensor:
    return torch.polar(x.abs() * 2, x.angle() + 0.1)


@pytest.mark.parametrize("name", OVER_SPACE)
def test_over_space_channels_pass(name: str) -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(OVER_SPACE[name](self.first(x)))

    structure = pruned(network(forward, image(), first=conv(3, 8), last=conv(8, 2)), range(2))
    assert free(structure) == {"first": 8}, str(structure)


OVER_CHANNELS: dict[str, Any] = {
    "tokens and channels": lambda x: torch.fft.fft2(x).real,
    "channels": lambda x: torch.fft.irfft(torch.fft.rfft(x, dim=-1), n=8, dim=-1),
    "all": lambda x: torch.fft.fftn(x).real,
    "shift": lambda x: torch.fft.fftshift(x),
}


@pytest.mark.parametrize("name", OVER_CHANNELS)
def test_over_channels_they_stay(name: str) -> None:
    def forward(self: Do, x: Tensor) -> Tensor:
        return self.last(OVER_CHANNELS[name](self.first(x)))

    structure = pruned(
        network(forward, torch.randn(2, 5, 3), first=nn.Linear(3, 8), last=nn.Linear(8, 2)), range(1)
    )
    assert not structure.prunable
    assert "along which aten.fft" in held(structure)["first"]


def test_pairs_of_channels_as_numbers() -> None:
    """Both parts of a number leave together."""

    def forward(self: Do, x: Tensor) -> Tensor:
        numbers = torch.view_as_complex(self.first(x).view(2, 5, 6, 2))
        turned = numbers * torch.polar(torch.ones(5, 1), torch.arange(5.0)[:, None])
        return self.last(torch.view_as_real(turned).flatten(2))

    made = network(forward, torch.randn(2, 5, 3), first=nn.Linear(3, 12), last=nn.Linear(12, 2))
    assert sorted(free(pruned(made)).values()) == [6]
