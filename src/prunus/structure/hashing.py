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
    keys = distinct(a * count + b)
    return np.stack([keys // count, keys % count], 1)


def distinct(labels: np.ndarray) -> np.ndarray:
    """Sorted, without repetition. Most labels ascend already; the others are sorted, which is faster than a table of hashes."""
    flat = labels.reshape(-1)
    if (flat[1:] > flat[:-1]).all():
        return flat
    flat = np.sort(flat)
    first = np.ones(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=first[1:])
    return flat[first]
