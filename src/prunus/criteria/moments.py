"""Second moments of activations: summed over data, read again, and shrunk where there are few samples."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.gram import gram

__all__ = ["Sums", "second_moments", "shrunk"]

_ROWS, _FOR_EACH = 8192, 16  # of a batch, and for each position


class Sums:
    """What `second_moments` has put together: (units, ...), or (units, width, ...) apart by position."""

    def __init__(self, sums: Tensor) -> None:
        self.width = sums.shape[1] if sums.dim() == 3 else 1
        sums = sums.reshape(-1, sums.shape[-1])
        self.gram, self.squares, self.total = sums[:, :-3], sums[:, -3], sums[:, -2]
        self.count = sums[:, -1].clamp(min=1e-300)
        self.together = self.gram.shape[0] == self.gram.shape[1]  # all products of positions are known

    @property
    def power(self) -> Tensor:
        return self.squares / self.count

    @property
    def variance(self) -> Tensor:
        return (self.power - (self.total / self.count).square()).clamp(min=0)

    def by_unit(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.width).sum(1)

    def repeated(self, size: int) -> float:
        """Positions of a unit, where they were summed."""
        return 1.0 if self.together or self.width > 1 else max(self.gram.shape[1], size) / size

    def covariance(self, samples: int) -> Tensor:
        """Of the inputs; the less data there is for its size, the more of it is taken for chance."""
        mean = self.total / self.count
        covariance = self.gram / self.count[:, None] - mean[:, None] * mean[None, :]
        return shrunk((covariance + covariance.T) / 2, samples * float(self.count.max()))


def second_moments(x: Tensor) -> Tensor:
    """(positions, positions + 3) products, squares, sum and number of (positions, samples, *map) activations, in float64.

    Products are taken about the means: of what hardly varies about a large mean, single precision would lose the variance.
    Of large maps a few thousand pixels, the same of each sample, stand for all: neighbours say much the same.
    """
    count = x[0].numel()
    flat = _some(x).flatten(1).float()
    size, taken = flat.shape
    mean = flat.mean(1)  # any numbers near it would do
    flat = flat - mean[:, None]
    rest, mean = flat.sum(1).double(), mean.double()
    found = torch.empty(size, size + 3, dtype=torch.float64, device=x.device)
    products, half = found[:, :size], rest + taken / 2 * mean
    products.copy_(gram(flat))
    products.addmm_(torch.stack([half, mean], 1), torch.stack([mean, half]))
    found[:, size], found[:, size + 1], found[:, size + 2] = products.diagonal(), rest + taken * mean, taken
    return found if taken == count else found * (count / taken)


def _some(x: Tensor) -> Tensor:
    """(positions, samples, *map): pixels drawn at random of maps that have more than are needed."""
    pixels, rows = x[0, 0].numel(), max(_ROWS, _FOR_EACH * len(x))
    times = x[0].numel() // rows
    if times < 2 or pixels < 2:
        return x
    drawn = torch.randperm(pixels, generator=torch.Generator().manual_seed(0))[: -(-pixels // times)]
    return x.flatten(2).index_select(2, drawn.sort().values.to(x.device))


def shrunk(covariance: Tensor, count: float) -> Tensor:
    """An estimate of the covariance from that of `count` samples: part of it is a multiple of the identity.

    Where there are hardly more samples than channels, each would seem to be a sum of the others. How much is shrunk follows
    from the matrix: oracle approximating shrinkage, Chen et al., 2010, arXiv:0907.4698.
    """
    size = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    chance = (count + 1 - 2 / size) * (square - trace**2 / size)
    part = min(1.0, ((1 - 2 / size) * square + trace**2) / chance) if chance > 0 else 1.0
    return (1 - part) * covariance + part * trace / size * torch.eye(size, dtype=covariance.dtype)
