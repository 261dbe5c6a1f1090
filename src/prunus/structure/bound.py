"""Slabs that would take along what can only leave with others."""

from __future__ import annotations

import numpy as np

from prunus.structure.control import Control
from prunus.structure.hashing import distinct

REASON = "would take along channels that leave with others only"


def astray(
    slab: np.ndarray, member: np.ndarray, bound: tuple[np.ndarray, np.ndarray], count: int
) -> np.ndarray:
    """Units whose removal takes a member away without the slab that it is bound to.

    Where an axis is made of rows and columns, as an outer product is, the channels that face it leave with a row or with a
    column. A slab that has another reason to take some of them must not.

    Args:
        slab, member: pairs of units; the member leaves with the slab.
        bound: pairs of units (slab, member) where the member leaves with one of its slabs only.
        count: number of units.

    Returns:
        Such units, ascending.
    """
    apart = bound[0] != bound[1]
    keys = distinct(bound[0][apart].astype(np.int64) * count + bound[1][apart])
    binder, held = keys // count, keys % count
    if not len(keys):
        return np.zeros(0, int)
    control = Control.of(slab, member, count)
    members = distinct(held)
    at, owner = control.owners(members)
    taken = distinct(owner.astype(np.int64) * count + members[at])  # (unit, bound member that it takes)
    at, owner = control.owners(binder)
    right = distinct(
        owner.astype(np.int64) * count + held[at]
    )  # (unit, bound member that it takes with a binder)
    wrong = taken[~np.isin(taken, right, assume_unique=True)]
    wrong = wrong[wrong // count != wrong % count]  # what is to leave by itself is locked elsewhere
    return distinct(wrong // count)
