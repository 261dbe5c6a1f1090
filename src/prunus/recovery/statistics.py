"""Statistics of channels, summed over batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Statistics", "like"]


class Statistics:
    """Mean and sum of squares about it, per channel, over batches; in float64.

    Batches are put together about their own means (Chan et al., Updating Formulae for the Sample Variance, 1979), which single precision
    inside a batch does not harm.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: Any = 0.0
        self._about: Any = 0.0

    def add(self, x: Tensor) -> None:
        """Count a batch in, (samples, channels, *map)."""
        x = x.flatten(2) if x.dim() > 2 else x.mT[None]
        x = x if x.dtype == torch.float64 else x.float()
        count = x.shape[0] * x.shape[2]
        if not count:
            return
        near = (x.sum(2).double().sum(0) / count).to(x.dtype)
        rest = x - near[:, None]
        off = rest.sum(2).double().sum(0) / count  # what rounding has left
        about = rest.square_().sum(2).double().sum(0) - count * off.square()
        self._count(count, near.double() + off, about)

    def merge(self, other: Statistics) -> None:
        """Count in what another has seen."""
        if other.n:
            self._count(other.n, other._mean, other._about)

    def _count(self, n: int, mean: Tensor, about: Tensor) -> None:
        both, apart = self.n + n, mean - self._mean
        self._about = self._about + about + apart.square() * (self.n * n / both)
        self._mean = self._mean + apart * (n / both)
        self.n = both

    def spread(self) -> float:
        """Sum of squares about the means."""
        return float(self._about.sum()) if self.n else 0.0

    def settled(self, old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, of the types of two tensors."""
        return like(old[0], self._mean), like(old[1], self._about.clamp(min=0) / max(self.n - 1, 1))


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """The value with the type and device of a tensor, a parameter if that is one."""
    made = value.to(tensor.device, tensor.dtype)
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made
