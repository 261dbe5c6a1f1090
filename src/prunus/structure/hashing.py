"""Sets and pairs of labels as single numbers."""

from __future__ import annotations

import numpy as np


def hashed(labels: np.ndarray) -> np.ndarray:
    """A well mixed 64-bit value per label (splitmix64), so that sums identify sets."""
    z = labels.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unique_pairs(a: np.ndarray, b: np.ndarray, count: int) -> np.ndarray:
    """(pairs, 2) without repetition, of labels below `count`."""
    keys = np.unique(a * count + b)
    return np.stack([keys // count, keys % count], 1)
