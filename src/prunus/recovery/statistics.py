"""Statistics of channels, summed over batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Statistics", "like"]


class Statistics:
    """Mean and variance per channel, summed over batches."""

    def __init__(self) -> None:
        self.n = 0
        self.sum: Any = 0.0
        self.square: Any = 0.0

    def add(self, x: Tensor) -> None:
        """Count a batch in."""
        flat = x.transpose(0, 1).flatten(1).double()
        self.n += flat.shape[1]
        self.sum = self.sum + flat.sum(1)
        self.square = self.square + flat.square().sum(1)

    def merge(self, other: Statistics) -> None:
        """Count in what another has seen."""
        self.n, self.sum, self.square = self.n + other.n, self.sum + other.sum, self.square + other.square

    def spread(self) -> float:
        """Sum of squares about the means."""
        return float((self.square - self.sum.square() / max(self.n, 1)).sum()) if self.n else 0.0

    def settled(self, old: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance, of the types of two tensors."""
        mean = self.sum / self.n
        variance = (self.square / self.n - mean.square()).clamp(min=0) * (self.n / max(self.n - 1, 1))
        return like(old[0], mean), like(old[1], variance)


def like(tensor: Tensor, value: Tensor) -> Tensor:
    """The value with the type and device of a tensor, a parameter if that is one."""
    made = value.to(tensor.device, tensor.dtype)
    return torch.nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else made
