"""How many singular values of a matrix rise above its noise: empirical variational Bayes in closed form."""

from __future__ import annotations

import math

import numpy as np

__all__ = ["evbmf_rank", "free_energy"]

_POINTS = 400
_REFINED = 60
_NOTHING = 1e-12  # of the largest squared singular value


def evbmf_rank(singular: np.ndarray, rows: int, columns: int) -> int:
    r"""Rank by the global analytic solution of empirical variational Bayes matrix factorization (Nakajima et al., JMLR 2013).

    The matrix is modeled as a low-rank one plus noise of variance $\sigma^2$; the variance is where the free energy is least, and
    the rank is the number of singular values above $\sqrt{M \sigma^2 \bar x}$. Scaling the matrix or transposing it changes nothing.

    Args:
        singular: all singular values.
        rows, columns: of the matrix.

    Returns:
        0 for what is all noise.
    """
    squares = np.sort(np.asarray(singular, dtype=np.float64) ** 2)[::-1]
    squares = squares[: min(rows, columns)]
    if not squares.size or squares[0] <= 0:
        return 0
    short, long = min(rows, columns), max(rows, columns)
    squares = squares / squares.mean()  # the search below has a scale of its own
    kept = squares[squares > _NOTHING * squares[0]]  # rows that are combinations of others are no evidence
    if 2 * len(kept) < short:
        return len(kept)  # a matrix of low rank, without noise
    short = len(kept)
    variance = _least(kept, short, long)
    return int((kept > long * variance * _threshold(short / long)).sum())


def free_energy(squares: np.ndarray, variances: np.ndarray, short: int, long: int) -> np.ndarray:
    """Free energy, up to a constant, of (n,) squared singular values at (m,) noise variances."""
    alpha = short / long
    x = squares[None, :] / (long * variances[:, None])
    inside = np.clip((x - (1 + alpha)) ** 2 - 4 * alpha, 0, None)
    tau = np.clip(0.5 * (x - (1 + alpha) + np.sqrt(inside)), 1e-300, None)
    signal = x - tau + np.log((tau + 1) / x) + alpha * np.log(tau / alpha + 1)
    noise = x - np.log(x)
    return np.where(x > _threshold(alpha), signal, noise).sum(1)


def _threshold(alpha: float) -> float:
    tau = 2.5129 * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def _least(squares: np.ndarray, short: int, long: int) -> float:
    """Noise variance of least free energy between its analytic bounds: a fine grid, then closer about the best point."""
    alpha, count = short / long, len(squares)
    most = min(math.ceil(short / (1 + alpha)) - 1, count - 1)  # no more components than this can be signal
    rest = squares[max(most, 0) :]
    upper = squares.sum() / (short * long)
    lower = max(rest[0] / (long * _threshold(alpha)), rest.mean() / long)
    lower = min(max(lower, 1e-12 * upper), upper)
    grid = np.geomspace(lower, upper, _POINTS)
    for _ in range(3):
        best = int(np.argmin(free_energy(squares, grid, short, long)))
        grid = np.geomspace(grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)], _REFINED)
    return float(grid[int(np.argmin(free_energy(squares, grid, short, long)))])
