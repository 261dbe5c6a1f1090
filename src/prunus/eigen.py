"""Eigenvalues and singular values on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["eigen", "eigenvalues", "one_thread", "singular"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside the block, operators on the CPU use one thread.

    A matrix is brought into tridiagonal form column by column, and threads wait for each other at every one. That gains little where
    they are alone; where another process has one of the cores, each wait takes as long as that process's turn: a matrix of
    768 x 768 then takes seconds on two threads, and a tenth of a second on one.
    """
    threads = torch.get_num_threads()
    if threads > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads > 1:
            torch.set_num_threads(threads)


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (…, n), largest first, and eigenvectors (…, n, n) of symmetric matrices (…, n, n)."""
    with one_thread():
        values, vectors = torch.linalg.eigh(matrix)
    return values.flip(-1), vectors.flip(-1)


def eigenvalues(matrix: Tensor) -> Tensor:
    """(…, n), largest first, of symmetric matrices (…, n, n)."""
    with one_thread():
        return torch.linalg.eigvalsh(matrix).flip(-1)


def singular(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Singular triples (…, rows, n), (…, n), (…, n, columns) of matrices (…, rows, columns), largest first, by the smaller Gram matrix.

    Their product is the matrix to rounding, and values above 1e-6 of the largest are singular values. The vectors of smaller
    ones are orthogonal to the others on one side only.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        right, values, left = singular(matrix.mT)
        return left.mT, values, right.mT
    u = eigen(matrix @ matrix.mT)[1]
    seen = u.mT @ matrix
    values = torch.linalg.vector_norm(seen, dim=-1)
    return u, values, seen / values[..., None].clamp(min=1e-150)
