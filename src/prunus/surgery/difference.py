"""How far two tensors that should be equal are apart."""

import math

import torch
from torch import Tensor

__all__ = ["largest", "relative_error"]


def relative_error(expected: Tensor, actual: Tensor) -> float:
    """Largest difference, relative to the largest finite magnitude expected (absolute, if that is zero).

    Equal infinities and NaN in the same places count as equal; any other difference that is not finite is
    infinite, and so is any difference between whole numbers.
    """
    actual = actual.to(expected.device)
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(expected, actual) else math.inf
    same = (expected == actual) | (expected.isnan() & actual.isnan())
    difference = torch.where(same, 0, expected - actual).abs()
    if not difference.numel():
        return 0.0
    worst = float(difference.max())
    if not math.isfinite(worst):
        return math.inf
    scale = largest(expected)
    return worst / scale if scale > 0 else worst


def largest(x: Tensor) -> float:
    """Largest finite magnitude; 0 where there is none."""
    magnitude = x.abs()
    return float(torch.where(magnitude.isfinite(), magnitude, 0).max()) if x.numel() else 0.0
