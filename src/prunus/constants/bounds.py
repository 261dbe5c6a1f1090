"""Between which numbers the elements of a value lie, and arithmetic with that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.structure.labels import tighten

__all__ = ["Bounds", "plus", "product", "scaled", "small", "times"]

INF = float("inf")


@dataclass(frozen=True, eq=False)
class Bounds:
    """Lower and upper bounds of all elements, float64, of the value's shape; stride 0 along axes on which they do not vary."""

    low: Tensor
    high: Tensor

    @property
    def known(self) -> Tensor:
        """Elements that have one value only."""
        return (self.low == self.high) & self.low.isfinite()

    @staticmethod
    def exact(x: Tensor) -> Bounds:
        x = x.detach().double()
        return Bounds(x, x)

    @staticmethod
    def any(shape: Sequence[int], low: float = -INF, high: float = INF) -> Bounds:
        """Elements of which no more is known."""
        ends = (torch.tensor(end, dtype=torch.float64).expand(*shape) for end in (low, high))
        return Bounds(*ends)

    def over(self, axes: Sequence[int]) -> Bounds:
        """Bounds of anything between the elements along some axes, which stay with size 1."""
        low, high = small(self.low), small(self.high)
        return Bounds(low.amin(tuple(axes), True), high.amax(tuple(axes), True)) if axes else self

    def hull(self, other: Bounds) -> Bounds:
        """Bounds of the elements of either."""
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Bounds(low, high).spread(low.shape)

    def with_zero(self) -> Bounds:
        """Bounds of the elements and of zero."""
        return Bounds(self.low.clamp(max=0), self.high.clamp(min=0))

    def spread(self, shape: Sequence[int]) -> Bounds:
        """Broadcast to a shape, with stride 0 wherever nothing varies."""
        return Bounds(tighten(self.low.expand(*shape)), tighten(self.high.expand(*shape)))

    def line(self, axis: int) -> Bounds | None:
        """Bounds along one axis, (size,); None where they vary along others."""
        ends = (small(self.low), small(self.high))
        if any(size > 1 for end in ends for i, size in enumerate(end.shape) if i != axis % end.dim()):
            return None
        size = self.low.shape[axis]
        return Bounds(*(end.reshape(-1).expand(size) for end in ends))


def small(x: Tensor) -> Tensor:
    """Size 1 along the axes on which a tensor does not vary."""
    index = tuple(slice(0, 1) if stride == 0 else slice(None) for stride in x.stride())
    return x[index]


def plus(a: Bounds, b: Bounds) -> Bounds:
    """Bounds of a sum; both broadcast."""
    return Bounds(a.low + b.low, a.high + b.high)


def times(a: Bounds, b: Bounds) -> Bounds:
    """Bounds of a product; what is infinite here is only unknown, so zero times it is zero."""
    ends = [
        (x * y).nan_to_num(nan=0.0, posinf=INF, neginf=-INF) for x in (a.low, a.high) for y in (b.low, b.high)
    ]
    together = torch.stack(torch.broadcast_tensors(*ends))
    return Bounds(together.amin(0), together.amax(0))


def scaled(a: Bounds, factor: float) -> Bounds:
    """Bounds of a multiple."""
    return Bounds(a.low * factor, a.high * factor) if factor >= 0 else Bounds(a.high * factor, a.low * factor)


def product(x: Bounds, weight: Tensor) -> Bounds:
    """Bounds of `x @ weight.T`; an unknown that meets weights of zero alone has no say.

    Args:
        x: (..., in).
        weight: (..., out, in).
    """
    up, down = weight.clamp(min=0).mT, weight.clamp(max=0).mT
    low, high = x.low.nan_to_num(posinf=0, neginf=0), x.high.nan_to_num(posinf=0, neginf=0)
    open_low, open_high = x.low.isinf().double(), x.high.isinf().double()
    rising, falling = (up > 0).double(), (down < 0).double()
    no_low = open_low @ rising + open_high @ falling > 0
    no_high = open_high @ rising + open_low @ falling > 0
    least, most = low @ up + high @ down, high @ up + low @ down
    return Bounds(least.masked_fill(no_low, -INF), most.masked_fill(no_high, INF))
