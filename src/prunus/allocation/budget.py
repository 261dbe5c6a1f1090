"""What may be kept under a target, which units a number means, and what stands in the way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunus.allocation.costs import CostModel
from prunus.allocation.families import Family
from prunus.allocation.target import Target
from prunus.errors import TargetError
from prunus.structure import Structure

Choice = dict[str, np.ndarray]

_HALVINGS = 24  # of a fraction: finer than one channel of any layer


class Budget:
    """A target as numbers: what the model has of its unit, what may stay, and what a choice keeps.

    Channels are those of the groups that are ranked, each index of a coupled group once.

    Raises:
        TargetError: channels are meant, and none can be removed.
    """

    def __init__(self, structure: Structure, families: list[Family], target: Target) -> None:
        if target.unit == "channels":
            require_any(structure, families, target)
        self.structure, self.families, self.target = structure, families, target
        self._costs = None if target.unit == "channels" else CostModel(structure)
        whole = [f.size for f in families]
        self.original = self._costs.original.of(target.unit) if self._costs else self.of(whole)
        # of so small a number as that of channels, what a product of floats leaves out could cost one
        self.allowed = target.fraction * self.original + (0 if self._costs else 1e-9)

    def of(self, counts: list[int]) -> int:
        """What stays, in the unit of the target, when the families keep these numbers per row."""
        if self._costs is None:
            return sum(c * f.units // f.size for c, f in zip(counts, self.families, strict=True))
        keep = self.structure.keep_labels(choice_of(self.families, counts))
        return self._costs(keep).of(self.target.unit)

    def fits(self, counts: list[int]) -> bool:
        """Whether that is little enough."""
        return self.of(counts) <= self.allowed

    def require(self, least: list[int]) -> None:
        """Refuse a target that even the least numbers do not meet.

        Raises:
            TargetError: says what is reachable and what stands in the way.
        """
        found = self.of(least)
        if found > self.allowed:
            share = found / self.original if self.original else 1.0
            raise TargetError(
                f"{self.target} cannot be reached: at the least {share:.4f} of the {self.target.unit} stays "
                f"({found:,} of {self.original:,}). {obstacles(self.structure, self.families)}"
            )


def require_any(structure: Structure, families: list[Family], target: Target) -> None:
    """Refuse a model of which no channel can be removed."""
    if not families:
        raise TargetError(
            f"{target} cannot be met: no channel of this model can be removed. {obstacles(structure, families)}"
        )


def widest(budget: Budget, counts_at: Callable[[float], list[int]]) -> Choice:
    """The choice of the largest fraction that fits, of those that `counts_at` makes from fractions from 0 to 1.

    Raises:
        TargetError: not even the smallest fits.
    """
    if budget.fits(counts := counts_at(1.0)):
        return choice_of(budget.families, counts)
    best, low, high = counts_at(0.0), 0.0, 1.0
    budget.require(best)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        counts = counts_at(middle)
        low, high, best = (middle, high, counts) if budget.fits(counts) else (low, middle, best)
    return choice_of(budget.families, best)


def choice_of(families: list[Family], counts: list[int]) -> Choice:
    """The units that stay when the families keep these numbers per row; groups that keep all are not listed."""
    chosen: Choice = {}
    for family, count in zip(families, counts, strict=True):
        if count < family.size:
            chosen.update(family.keep(count))
    return chosen


def alive(structure: Structure, families: list[Family], counts: list[int]) -> list[int]:
    """Give every axis of every parameter, and every part of a value, at least one position back."""
    if all(counts):
        return counts
    counts = list(counts)
    for _ in range(len(families)):
        keep = structure.keep_labels(choice_of(families, counts))
        dead = structure.emptied_labels(keep)
        if dead is None:
            return counts
        units = _with_containers(structure, structure.units.of_label[dead])
        empty = [
            i
            for i, f in enumerate(families)
            if counts[i] == 0 and any(units & set(g.units.tolist()) for g in f.groups)
        ]
        if not empty:  # what is left of nothing but rows took them along
            empty = [i for i, count in enumerate(counts) if count == 0]
        if not empty:
            return counts
        best = max(empty, key=lambda i: families[i].worth[0])
        counts[best] = next(k for k in families[best].allowed if k > 0)
    return counts


def _with_containers(structure: Structure, units: np.ndarray) -> set[int]:
    """Units, and those with which they leave: a column of channels, one of each convolution group."""
    slab, member = structure.units.slab, structure.units.member
    found = np.zeros(structure.units.count, bool)
    found[units] = True
    before = 0
    while before != (before := int(found.sum())):
        found[slab[found[member]]] = True
    return set(np.flatnonzero(found).tolist())


def obstacles(structure: Structure, families: list[Family]) -> str:
    """Which groups cannot shrink further, largest first."""
    free = {g.name for f in families for g in f.groups}
    held: dict[str, int] = {}
    tensors = {structure.captured.names[p]: t.numel() for p, t in structure.captured.tensors.items()}
    for group in structure.groups:
        if group.name not in free and not group.outer:
            reason = group.held or "held by your settings"
            held[f"{group.name} ({group.size}: {reason})"] = sum(
                tensors.get(m.parameter, 0) for m in group.members if m.produces
            )
    largest = sorted(held, key=lambda k: -held[k])[:5]
    said = [*_limits(families), *_without_rule(structure)]
    if largest and not any(family.limit and len(family.allowed) == 1 for family in families):
        said.append("Held: " + "; ".join(largest))
    return ". ".join(said or ["Nothing is held; floors and multiples limit it"]) + "."


def _limits(families: list[Family]) -> list[str]:
    """Which settings keep groups large."""
    found: dict[str, list[str]] = {}
    for family in families:
        if family.limit:
            group = family.groups[0]
            found.setdefault(family.limit, []).append(f"{group.name} ({group.size})")
    return [
        f"Kept large by {limit}: {'; '.join(names[:5])}"
        + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        for limit, names in found.items()
    ]


def _without_rule(structure: Structure) -> list[str]:
    """How much is held by operators that nobody has told how channels pass through."""
    counts: dict[str, int] = {}
    for number, reason in enumerate(structure.units.reasons):
        operator = structure.unknown.get(reason.node or "")
        if operator is not None and operator in reason.text:
            counts[operator] = counts.get(operator, 0) + int((structure.units.held == number).sum())
    said = ", ".join(f"{operator} ({count})" for operator, count in sorted(counts.items()) if count)
    return [f"Channels held by operators without a rule: {said}"] if said else []
