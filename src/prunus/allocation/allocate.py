"""Allocators by name, and the way from scores to a choice."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from prunus.allocation.budget import Budget, Choice
from prunus.allocation.erk import erk
from prunus.allocation.families import Family, find_families
from prunus.allocation.global_rank import global_rank
from prunus.allocation.isomorphic import isomorphic
from prunus.allocation.knapsack import knapsack
from prunus.allocation.slamp import energies, layer_adaptive
from prunus.allocation.target import Target
from prunus.allocation.uniform import uniform
from prunus.criteria.options import Options
from prunus.errors import ConfigError
from prunus.structure import Group, Structure

Allocator = Callable[[Structure, list[Family], Target], Choice]

ALLOCATORS: dict[str, Allocator] = {
    "uniform": uniform,
    "global": global_rank,
    "slamp": global_rank,  # of layer-adaptive scores
    "isomorphic": isomorphic,
    "erk": erk,
    "knapsack": knapsack,
}


def allocator_of(allocation: str | None, target: Target, criterion: Any = None) -> str:
    """The allocator's name; where none is given, the one that suits the criterion and the target.

    Raises:
        ConfigError: an unknown name.
    """
    if allocation is None:
        suits = getattr(criterion, "allocation", "global")
        return "uniform" if target.unit == "channels" else suits
    if not isinstance(allocation, str) or allocation not in ALLOCATORS:
        near = difflib.get_close_matches(str(allocation), ALLOCATORS, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"unknown allocation {allocation!r}.{hint} Known: {', '.join(ALLOCATORS)}.")
    return allocation


def allocate(
    structure: Structure,
    scores: Mapping[str, np.ndarray],
    target: Target,
    *,
    allocation: str,
    criterion: Any,
    floors: float | Mapping[str, float | int] | None,
    multiple_of: int,
    options: Options,
) -> Choice:
    """Which units every group keeps; groups that keep all are not listed.

    Args:
        structure: the structure.
        scores: (units,) per group name, normalized and combined; high = keep.
        target: what is kept.
        allocation: name of the allocator.
        criterion: what made the scores; says in which power they add up.
        floors: see `plan`; None is 5 % where units of different groups are compared, and nothing where not.
        multiple_of: see `plan`.
        options: see `Options`.

    Raises:
        ConfigError, PlanError, TargetError: see `plan`.
    """
    if allocation == "slamp":
        scores = {name: layer_adaptive(energies(s, criterion, name)) for name, s in scores.items()}
    if options.reverse:
        scores = {name: -s for name, s in scores.items()}
    if floors is None and target.unit == "channels" and allocation == "uniform":
        floors = 0.0
    families = find_families(structure, scores, floors=floors, multiple_of=multiple_of, options=options)
    return {} if target.fraction == 1 else ALLOCATORS[allocation](structure, families, target)


def require_reachable(
    structure: Structure,
    groups: Sequence[Group],
    target: Target,
    *,
    allocation: str,
    floors: float | Mapping[str, float | int] | None,
    multiple_of: int,
    options: Options,
) -> None:
    """Refuse a target that cannot be met whatever the scores: not even when every group keeps its least.

    Raises:
        TargetError: says what is reachable and what stands in the way.
    """
    if floors is None and target.unit == "channels" and allocation == "uniform":
        floors = 0.0
    alike = {group.name: np.zeros(group.size) for group in groups}
    families = find_families(structure, alike, floors=floors, multiple_of=multiple_of, options=options)
    Budget(structure, families, target).require([family.allowed[0] for family in families])
