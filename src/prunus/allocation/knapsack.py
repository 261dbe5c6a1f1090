"""Channels where they cost least: the error that a group adds for each unit of the budget that it frees."""

from __future__ import annotations

import heapq

import numpy as np

from prunus.allocation.budget import Budget, Choice, alive, choice_of
from prunus.allocation.families import Family
from prunus.allocation.target import Target
from prunus.structure import Structure

_PARTS = 64  # a family loses up to this share of its channels at a time


def knapsack(structure: Structure, families: list[Family], target: Target) -> Choice:
    """Remove, again and again, what adds least error for what it saves, until the target is just met.

    Scores are taken for errors that add up, as those of `OBS` are: what a family loses is the sum of the scores of what leaves.
    What that saves depends on the widths of its neighbors, and is worked out with what has left already.

    Raises:
        TargetError: the target is not reachable; says what is, and what stands in the way.
    """
    budget = Budget(structure, families, target)
    counts = [f.size for f in families]
    least = alive(structure, families, [f.allowed[0] for f in families])
    budget.require(least)
    used = budget.of(counts)
    queue = [(0.0, i) for i, f in enumerate(families) if counts[i] > least[i]]
    seen: dict[int, tuple[float, int]] = {}
    while used > budget.allowed and queue:
        _, i = heapq.heappop(queue)
        step = _next(families[i], counts[i], least[i])
        if step is None:
            continue
        saved = used - budget.of([*counts[:i], step, *counts[i + 1 :]])
        price = _error(families[i], step, counts[i]) / max(saved, 1e-9)
        if queue and price > queue[0][0] and seen.get(i) != (price, step):
            seen[i] = (price, step)  # others may be cheaper; looked at again when its turn comes
            heapq.heappush(queue, (price, i))
            continue
        counts[i] = step
        used -= saved
        heapq.heappush(queue, (price, i))
    return choice_of(families, _refilled(budget, counts))


def _next(family: Family, count: int, least: int) -> int | None:
    """The number of channels to go down to."""
    lower = [k for k in family.allowed if least <= k < count]
    if not lower:
        return None
    wanted = count - max(1, family.size // _PARTS)
    return next((k for k in reversed(lower) if k <= wanted), lower[0])


def _error(family: Family, fewer: int, count: int) -> float:
    """Sum of the scores of what leaves; `worth` is their mean over rows and groups."""
    return float(family.worth[fewer:count].sum()) * family.units / family.size


def _refilled(budget: Budget, counts: list[int]) -> list[int]:
    """Give back what is worth most, where the last step has freed more than was asked for."""
    families = budget.families
    order = np.argsort([-_error(f, c, min(c + 1, f.size)) for f, c in zip(families, counts, strict=True)])
    for i in order[:32].tolist():
        larger = next((k for k in families[i].allowed if k > counts[i]), None)
        if larger is not None and budget.fits(trial := [*counts[:i], larger, *counts[i + 1 :]]):
            counts = trial
    return counts
