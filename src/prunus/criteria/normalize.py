"""Make the scores of one layer comparable with those of others. All keep the order of the scores."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunus.errors import PlanError


def over_mean(scores: np.ndarray) -> np.ndarray:
    """Divided by the mean of the absolute scores (units,); zeros stay."""
    mean = np.abs(scores).mean()
    return scores / mean if mean > 0 else scores


def standard_score(scores: np.ndarray) -> np.ndarray:
    """Less the mean, divided by the standard deviation (of all units, not of a sample); zeros where all are equal."""
    spread = scores.std()
    equal = spread <= 1e-12 * np.abs(scores).max()  # what rounding leaves is no difference
    return np.zeros_like(scores) if equal else (scores - scores.mean()) / spread


def share_of_sum(scores: np.ndarray) -> np.ndarray:
    """Divided by their sum; zeros stay.

    Raises:
        PlanError: the sum is negative or cancels, which would turn the order around.
    """
    total = scores.sum()
    if (scores < 0).any() and total <= 0:
        raise PlanError(f"tss_norm divides by the sum of the scores, which is {total:g}: use standard_score")
    return scores / total if total > 0 else scores


def linear_scaling(scores: np.ndarray) -> np.ndarray:
    """From 0 for the least to 1 for the greatest; zeros where all are equal."""
    width = scores.max() - scores.min()
    return (scores - scores.min()) / width if width > 0 else np.zeros_like(scores)


def softmax(scores: np.ndarray) -> np.ndarray:
    """Exponentials that sum to 1; of large scores without overflow."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def unchanged(scores: np.ndarray) -> np.ndarray:
    """As they are."""
    return scores


NORMALIZERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": over_mean,
    "standard_score": standard_score,
    "tss_norm": share_of_sum,
    "linear_scaling": linear_scaling,
    "softmax_norm": softmax,
    "none": unchanged,
}
