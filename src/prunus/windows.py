"""What the kernel of a convolution meets at each place of its output."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

__all__ = ["spread", "windows"]


def windows(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """(batch, in, *out, *kernel), a view of (batch, in, *sizes), which has been padded."""
    for i, (size, step, apart) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + i, apart * (size - 1) + 1, step)[..., ::apart]
    return x


def spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """(batch, in, *sizes) with `stride - 1` zeros between neighbours.

    A transposed convolution is an ordinary one over this, with its kernel turned round and stride 1.
    """
    if all(step == 1 for step in stride):
        return x
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    wide = x.new_zeros(*x.shape[:2], *sizes)
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    return wide
