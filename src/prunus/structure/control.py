"""Which units leave with which, over any number of slabs within slabs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array, csr_array

_DEPTH = 5  # slabs of slabs of slabs: bounded


@dataclass(frozen=True, eq=False)
class Control:
    """For every unit, all whose removal removes it too, itself included.

    Attributes:
        start: (units + 1,) where the list of each unit begins in `owner`.
        owner: (entries,) the lists, one after another.
    """

    start: np.ndarray
    owner: np.ndarray

    @staticmethod
    def of(slab: np.ndarray, member: np.ndarray, count: int) -> Control:
        """From (slab, member) pairs."""
        if not len(slab):
            return Control(np.arange(count + 1), np.arange(count))
        own = np.arange(count)
        rows, columns = np.concatenate([member, own]), np.concatenate([slab, own])
        step = csr_array(coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count)))
        reach = step
        for _ in range(_DEPTH - 1):
            grown = csr_array((reach @ step).astype(bool))
            if grown.nnz == reach.nnz:
                break
            reach = grown
        return Control(reach.indptr, reach.indices)

    def owners(self, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(pairs,) indices into `units`, ascending, and (pairs,) the units that remove them."""
        first = self.start[units].astype(np.int64)
        counts = self.start[units + 1] - first
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        at = np.arange(total) + np.repeat(first - ends + counts, counts)
        return np.repeat(np.arange(len(units)), counts), self.owner[at]

    def matrix(self) -> csr_array:
        """(units, units) boolean: entry (u, s) where u leaves when s does."""
        n = len(self.start) - 1
        return csr_array((np.ones(len(self.owner), bool), self.owner, self.start), shape=(n, n))
