"""From a criterion to one number per unit that compares between groups: score, normalize, combine."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from prunus.criteria.base import GroupView
from prunus.criteria.magnitude import check_scores
from prunus.criteria.normalize import NORMALIZERS
from prunus.criteria.options import Options
from prunus.criteria.views import Views
from prunus.errors import PlanError
from prunus.evidence import Evidence
from prunus.evidence.mixable import mixable
from prunus.structure import Group, Structure


def score_groups(
    structure: Structure,
    criterion: Any,
    groups: Sequence[Group],
    options: Options,
    evidence: Evidence | None = None,
    multiplied: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """Group name -> (units,) float64 scores, normalized and combined as the options say; high = keep.

    Raises:
        PlanError: scores of another shape or not finite, or that cannot be normalized.
        ConfigError: the criterion cannot score a group.
    """
    mixed = mixable(structure, groups) if evidence and getattr(criterion, "mixes", False) else None
    views = Views(structure, evidence, multiplied, mixed)
    return {
        group.name: over_rows(
            over_layers(criterion, views.group(group), options), group.rows, options.group_policy
        )
        for group in groups
    }


def over_layers(criterion: Any, view: GroupView, options: Options) -> np.ndarray:
    """(units,) scores of a group: normalized per layer, then combined by the policy."""
    normalize, method = NORMALIZERS[options.layer_norm], type(criterion).__name__
    parts = (view,) if options.policy == "backward" else by_layer(view)
    raw = [check_scores(criterion.score(part), part, method).numpy() for part in parts]
    try:
        scores = np.stack([normalize(values) for values in raw])
    except PlanError as error:
        raise PlanError(f"{method} for group {view.name!r}: {error}") from error
    return scores.sum(0) if options.policy == "sum" else scores.mean(0)


def by_layer(view: GroupView) -> tuple[GroupView, ...]:
    """One view for each layer that makes the group's channels, with its own weights and outputs alone; else the view itself."""
    layers: dict[str, list[Any]] = {}
    for member in view.members:
        if member.produces:
            layers.setdefault(member.parameter.rpartition(".")[0], []).append(member)
    return tuple(
        dataclasses.replace(
            view,
            members=tuple(members),
            evidence={
                key: {layer: seen[layer]} if layer in seen else seen for key, seen in view.evidence.items()
            },
        )
        for layer, members in layers.items()
    ) or (view,)


def over_rows(scores: np.ndarray, rows: np.ndarray | None, policy: str) -> np.ndarray:
    """(units,) scores in which an index has the same score in every row, for the policies that want that.

    Args:
        scores: (units,).
        rows: (rows, units per row) indices of units, or None.
        policy: `group_policy` of the options.
    """
    if rows is None or policy not in ("sum", "average"):
        return scores
    values = scores[rows].sum(0) if policy == "sum" else scores[rows].mean(0)
    combined = scores.copy()
    combined[rows] = values
    return combined
