"""One report for what was done in several steps."""

from __future__ import annotations

import dataclasses
from typing import Any

from prunus.report.data import GroupReport, LayerReport, Report

__all__ = ["joined"]


def joined(first: Report, second: Report) -> Report:
    """The report of two things that were done one after the other: each as it is, and what both come to.

    What was asked for, verified and repaired stands in `steps`; totals, groups and layers are those of both together.
    """
    changes: dict[str, Any] = {
        "method": ", then ".join(filter(None, (first.method, second.method))),
        "target": {},
        "allocation": "",
        "options": {},
        "before": first.before,
        "groups": _groups(first.groups, second.groups),
        "layers": _layers(first.layers, second.layers),
        "replaced": (*first.replaced, *second.replaced),
        "recovery": second.recovery or first.recovery,
        "notes": (*dict.fromkeys((*first.notes, *second.notes)),),
        "unknown_operators": {**first.unknown_operators, **second.unknown_operators},
        "verification": _verification(first.verification, second.verification),
        "steps": (*(first.steps or (first,)), *(second.steps or (second,))),
    }
    if second.form == "class":
        changes |= {"form": first.form, "form_reason": first.form_reason}
    return dataclasses.replace(second, **changes)


def _groups(first: tuple[GroupReport, ...], second: tuple[GroupReport, ...]) -> tuple[GroupReport, ...]:
    """Groups from their size at the beginning to what is left in the end; those that only one step knows as they are there."""
    later = {group.name: group for group in second}
    found = []
    for group in first:
        next_ = later.get(group.name)
        if next_ is not None and next_.size == group.kept:
            del later[group.name]
            group = dataclasses.replace(group, kept=next_.kept)
        found.append(group)
    return (*found, *later.values())


def _layers(first: tuple[LayerReport, ...], second: tuple[LayerReport, ...]) -> tuple[LayerReport, ...]:
    later = {layer.path: layer for layer in second}
    found = []
    for layer in first:
        next_ = later.pop(layer.path, None)
        if next_ is not None:
            reason = next_.reason if next_.params_after == layer.params_before else None
            layer = dataclasses.replace(
                layer, after=next_.after, params_after=next_.params_after, reason=reason
            )
        found.append(layer)
    return (*found, *later.values())


def _verification(first: dict[str, Any] | None, second: dict[str, Any] | None) -> dict[str, Any] | None:
    """That of the step which agrees least; None where one was not verified."""
    if first is None or second is None:
        return None
    worse = max(first, second, key=lambda each: each["max_relative_error"] / each["tolerance"])
    return {**worse, "remarks": [*first["remarks"], *second["remarks"]]}
