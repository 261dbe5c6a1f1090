"""Units of the whole model in one ranking."""

from __future__ import annotations

import numpy as np

from prunus.allocation.budget import Budget, Choice, alive, choice_of
from prunus.allocation.families import Family
from prunus.allocation.target import Target
from prunus.structure import Structure


def global_rank(structure: Structure, families: list[Family], target: Target) -> Choice:
    """Remove the units of least worth, wherever they are, until the target is just met.

    For `Target(channels=...)` that is the share of all channels that are ranked, each index of a coupled group once.

    Raises:
        TargetError: the target is not reachable; says what is, and what stands in the way.
    """
    budget = Budget(structure, families, target)
    steps = sorted((family.worth[j], i, j) for i, family in enumerate(families) for j in range(family.size))
    owner = np.array([i for _, i, _ in steps], dtype=int)

    def counts_after(removed: int) -> list[int]:
        lost = np.bincount(owner[:removed], minlength=len(families))
        wanted = [f.rounded(f.size - int(n), "round_up") for f, n in zip(families, lost, strict=True)]
        return alive(structure, families, wanted)

    low, high = 0, len(steps)
    if budget.fits(counts_after(0)):
        return choice_of(families, counts_after(0))
    budget.require(counts_after(high))
    while high - low > 1:  # invariant: too much stays after `low` removals, little enough after `high`
        middle = (low + high) // 2
        if budget.fits(counts_after(middle)):
            high = middle
        else:
            low = middle
    return choice_of(families, _refill(budget, counts_after(high)))


def _refill(budget: Budget, counts: list[int]) -> list[int]:
    """Give back the best units that still fit: steps of several channels can overshoot."""
    families = budget.families
    order = sorted(
        range(len(families)), key=lambda i: -families[i].worth[min(counts[i], families[i].size - 1)]
    )
    for i in order[:32]:
        larger = [k for k in families[i].allowed if k > counts[i]]
        if larger and families[i].step_op in (None, "round_up"):
            trial = [*counts[:i], larger[0], *counts[i + 1 :]]
            if budget.fits(trial):
                counts = trial
    return counts
