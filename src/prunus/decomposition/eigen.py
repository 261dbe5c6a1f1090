"""Eigenvalues and singular values on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["eigen", "eigenvalues", "one_thread"]


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
