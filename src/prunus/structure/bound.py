"""Slabs that would take along what can only leave with others, or what stays."""

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


def hold_emptying(
    cuts: list[np.ndarray], pairs: tuple[np.ndarray, np.ndarray, np.ndarray], held: np.ndarray, last: int
) -> None:
    """Hold, in place, what takes all of a part that an axis has somewhere, or all members of a slab that is held.

    Args:
        cuts: units of such parts, of each of which one must stay.
        pairs: slabs, their members, and the statement that each pair belongs to.
        held: (units,) index of the reason why a unit is held, -1 where nothing holds it.
        last: the reason for what would take the last of a part.
    """
    slab, member, statement = pairs
    control = Control.of(slab, member, len(held))
    parts = [distinct(part) for part in cuts]
    lone = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    stays = np.flatnonzero(held[slab] >= 0)
    part = np.concatenate([lone, len(parts) + statement[stays]])
    why = np.full(int(part.max(initial=0)) + 1, last)
    why[len(parts) + statement[stays]] = held[slab[stays]]
    taken, unit = _covering(control, np.concatenate([*parts, member[stays]]), part)
    fresh = held[unit] < 0
    held[unit[fresh]] = why[taken[fresh]]


def _covering(control: Control, member: np.ndarray, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (part, unit) where the unit takes all members of the part, which has each of them once."""
    count = len(control.start) - 1
    at, owner = control.owners(member)
    keys, times = np.unique(part[at].astype(np.int64) * count + owner, return_counts=True)
    full = keys[times == np.bincount(part)[keys // count]] if len(keys) else keys
    return full // count, full % count
