"""Rankings among groups of equal topology."""

from __future__ import annotations

import numpy as np

from prunus.allocation.budget import Budget, Choice, alive, widest
from prunus.allocation.families import Family
from prunus.allocation.target import Target
from prunus.structure import Group, Structure


def isomorphic(structure: Structure, families: list[Family], target: Target) -> Choice:
    """Remove the same share of every pool of groups of equal topology, the least of the pool wherever they are.

    Groups are of equal topology if the operators that use their parameters, in order, the axes on which the channels lie,
    and the sides (making or reading) agree. Scores of unlike layers (queries, hidden layers, a residual stream)
    are so never compared. The share is the smallest that meets the target.

    Raises:
        TargetError: the target is not reachable.

    References:
        Fang et al., Isomorphic Pruning for Vision Models, ECCV 2024, arXiv:2407.04616.
    """
    users = operators_by_placeholder(structure)
    pools: dict[object, list[int]] = {}
    for i, family in enumerate(families):
        tag = tuple(topology(structure, group, users) for group in family.groups)
        pools.setdefault(tag, []).append(i)
    ranked = [_ranking(families, members) for members in pools.values()]

    def counts_at(fraction: float) -> list[int]:
        counts = [family.size for family in families]
        for owner, lost in ranked:
            within = np.searchsorted(lost, (1 - fraction) * lost[-1] * (1 + 1e-12), side="right")
            for i, number in zip(*np.unique(owner[:within], return_counts=True), strict=True):
                counts[i] -= int(number)
        return alive(
            structure, families, [f.rounded(c, "round_up") for f, c in zip(families, counts, strict=True)]
        )

    return widest(Budget(structure, families, target), counts_at)


def _ranking(families: list[Family], members: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Families that lose a unit per row, least worth first, and how many units are lost until then."""
    steps = sorted((families[i].worth[j], i, j) for i in members for j in range(families[i].size))
    owner = np.array([i for _, i, _ in steps], dtype=int)
    return owner, np.cumsum([families[i].units // families[i].size for i in owner])


def operators_by_placeholder(structure: Structure) -> dict[str, tuple[str, ...]]:
    """Placeholder -> the operators that use it."""
    return {
        node.name: tuple(sorted({str(user.target) for user in node.users}))
        for node in structure.captured.graph.nodes
        if node.op == "placeholder"
    }


def topology(structure: Structure, group: Group, users: dict[str, tuple[str, ...]]) -> tuple[object, ...]:
    """Operators, axes and sides of all that the group occupies, in the order of the graph; no sizes and no names."""
    made = {(m.parameter, m.axis): m.produces for m in group.members}
    names = structure.captured.names
    described = [
        (users[p.placeholder], p.axis, made.get((names[p.placeholder], p.axis), False))
        for p in structure.positions[group.name]
    ]
    return (group.rows is not None, *described)
