"""The same fraction of every group."""

from __future__ import annotations

from prunus.allocation.budget import Budget, Choice, alive, choice_of, obstacles, require_any, widest
from prunus.allocation.families import SMALL, Family
from prunus.allocation.target import Target
from prunus.errors import TargetError
from prunus.structure import Structure


def uniform(structure: Structure, families: list[Family], target: Target) -> Choice:
    """Keep the same fraction of every group. Groups too small to be rounded alone share the rounding with those beside them.

    For `Target(channels=...)` the fraction is the target's; for others it is the largest that meets the target.

    Raises:
        TargetError: floors or multiples keep the model away from the target, or there is nothing to remove.
    """
    if target.unit != "channels":
        return widest(Budget(structure, families, target), lambda f: uniform_counts(structure, families, f))
    fraction = target.fraction
    require_any(structure, families, target)
    counts = uniform_counts(structure, families, fraction)
    kept = sum(c * f.units / f.size for c, f in zip(counts, families, strict=True))
    total = sum(f.units for f in families)
    slack = sum(f.rounding_error() * f.units / f.size for f in families)
    stuck = all(family.allowed == (family.size,) for family in families) and round(fraction * total) < total
    if total and (stuck or kept > fraction * total + slack + len(families)):
        raise TargetError(
            f"channels={fraction:g} cannot be met: with these floors, multiples and held layers {kept / total:.3f} of the channels stay. "
            f"{obstacles(structure, families)}"
        )
    return choice_of(families, counts)


def uniform_counts(structure: Structure, families: list[Family], fraction: float) -> list[int]:
    """How many units per row every family keeps when all keep the same fraction."""
    counts = [
        family.rounded(max(round(fraction * family.size), 0 if _is_small(family) else 1), "round")
        for family in families
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
            counts[i] = families[i].rounded(quota[i], "round_up")
    return alive(structure, families, counts)


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
