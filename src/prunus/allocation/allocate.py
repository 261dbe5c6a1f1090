"""How many units every group keeps, and which: uniform, and global under a target on the whole model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prunus.allocation.costs import Cost, CostModel
from prunus.allocation.families import SMALL, Family
from prunus.allocation.target import Target
from prunus.errors import TargetError
from prunus.structure import Structure

Choice = dict[str, np.ndarray]


def uniform(structure: Structure, families: list[Family], fraction: float) -> Choice:
    """Keep the same fraction of every group. Groups too small to be rounded alone share the rounding with those beside them.

    Raises:
        TargetError: floors or multiples keep the model away from the fraction, or there is nothing to remove.
    """
    if not families:
        raise TargetError(
            f"channels={fraction:g} cannot be met: no channel of this model can be removed. {_obstacles(structure, families)}"
        )
    counts = [
        family.fit(max(round(fraction * family.size), 0 if _is_small(family) else 1)) for family in families
    ]
    for pool in _pools(families):
        want = round(fraction * sum(families[i].size for i in pool))
        ranked = sorted(
            ((families[i].worth[j], -i, j) for i in pool for j in range(families[i].size)), reverse=True
        )
        quota = {i: int(fraction * families[i].size) for i in pool}
        spare = want - sum(quota.values())
        for _, minus_i, j in ranked:
            if spare > 0 and j == quota[-minus_i]:
                quota[-minus_i] += 1
                spare -= 1
        for i in pool:
            counts[i] = families[i].at_least(quota[i])
    counts = _alive(structure, families, counts)
    kept = sum(c * f.units / f.size for c, f in zip(counts, families, strict=True))
    total = sum(f.units for f in families)
    slack = sum(max(np.diff(f.allowed), default=f.size) / 2 * f.units / f.size for f in families)
    if total and kept > fraction * total + slack + len(families):
        raise TargetError(
            f"channels={fraction:g} cannot be met: with these floors, multiples and held layers {kept / total:.3f} of the channels stay. "
            f"{_obstacles(structure, families)}"
        )
    return _choice(families, counts)


def global_rank(structure: Structure, families: list[Family], target: Target, costs: CostModel) -> Choice:
    """Remove the units of least worth, wherever they are, until the target is just met.

    Raises:
        TargetError: the target is not reachable; says what is, and what stands in the way.
    """
    unit = target.unit
    allowed = target.fraction * costs.original.of(unit)
    steps = sorted((family.worth[j], i, j) for i, family in enumerate(families) for j in range(family.size))
    owner = np.array([i for _, i, _ in steps], dtype=int)

    def counts_after(removed: int) -> list[int]:
        lost = np.bincount(owner[:removed], minlength=len(families))
        wanted = [f.at_least(f.size - int(n)) for f, n in zip(families, lost, strict=True)]
        return _alive(structure, families, wanted)

    def cost(counts: list[int]) -> Cost:
        return costs(structure.keep_labels(_choice(families, counts)))

    low, high = 0, len(steps)
    if cost(counts_after(0)).of(unit) <= allowed:
        return _choice(families, counts_after(0))
    least = cost(counts_after(high))
    if least.of(unit) > allowed:
        raise TargetError(
            f"{target} cannot be reached: at the least {least.of(unit) / costs.original.of(unit):.4f} of the {unit} stays "
            f"({least.of(unit):,} of {costs.original.of(unit):,}). {_obstacles(structure, families)}"
        )
    while high - low > 1:  # invariant: too much stays after `low` removals, little enough after `high`
        middle = (low + high) // 2
        if cost(counts_after(middle)).of(unit) <= allowed:
            high = middle
        else:
            low = middle
    return _choice(families, _refill(families, counts_after(high), lambda c: cost(c).of(unit) <= allowed))


def _refill(families: list[Family], counts: list[int], fits: Callable[[list[int]], bool]) -> list[int]:
    """Give back the best units that still fit: steps of several channels can overshoot."""
    order = sorted(
        range(len(families)), key=lambda i: -families[i].worth[min(counts[i], families[i].size - 1)]
    )
    for i in order[:32]:
        larger = [k for k in families[i].allowed if k > counts[i]]
        if larger:
            trial = [*counts[:i], larger[0], *counts[i + 1 :]]
            if fits(trial):
                counts = trial
    return counts


def _is_small(family: Family) -> bool:
    return family.allowed[0] == 0


def _pools(families: list[Family]) -> list[list[int]]:
    """Small families that share a producing layer."""
    pools: list[tuple[set[str], list[int]]] = []
    for i, family in enumerate(families):
        if not _is_small(family) or family.size >= SMALL:
            continue
        makers = {m.parameter for g in family.groups for m in g.members if m.produces}
        touching = [p for p in pools if p[0] & makers]
        merged = (makers.union(*(p[0] for p in touching)), [i, *(x for p in touching for x in p[1])])
        pools = [p for p in pools if p not in touching] + [merged]
    return [sorted(members) for _, members in pools]


def _choice(families: list[Family], counts: list[int]) -> Choice:
    chosen: Choice = {}
    for family, count in zip(families, counts, strict=True):
        if count < family.size:
            chosen.update(family.keep(count))
    return chosen


def _alive(structure: Structure, families: list[Family], counts: list[int]) -> list[int]:
    """Give every axis of every parameter, and every part of a value, at least one position back."""
    if all(counts):
        return counts
    counts = list(counts)
    for _ in range(len(families)):
        keep = structure.keep_labels(_choice(families, counts))
        dead = structure.emptied_labels(keep)
        if dead is None:
            return counts
        units = _with_containers(structure, structure.units.of_label[dead])
        empty = [
            i
            for i, f in enumerate(families)
            if counts[i] == 0 and any(units & set(g.units.tolist()) for g in f.groups)
        ]
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


def _obstacles(structure: Structure, families: list[Family]) -> str:
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
    return (
        ("Held: " + "; ".join(largest) + ".")
        if largest
        else "Nothing is held; floors and multiples limit it."
    )
