"""What stays where the user lists indices of layers or groups."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import numpy as np

from prunus.allocation.budget import Choice
from prunus.criteria import ByIndex
from prunus.errors import PlanError
from prunus.plan_schema import checked
from prunus.structure import Group, Structure

__all__ = ["choice_by_index"]


def choice_by_index(structure: Structure, method: ByIndex) -> Choice:
    """Group name -> units that stay, as the lists of indices say.

    Raises:
        PlanError: lists that do not fit the model; all problems in one message.
    """
    choice: Choice = {}
    problems = []
    for listed, removing in ((method.keep, False), (method.remove, True)):
        for name, indices in listed.items():
            try:
                group, units = _units(structure, name, indices)
                stay = sorted(set(range(group.size)) - units) if removing else sorted(units)
                if not stay:
                    raise PlanError(f"{name}: this removes all {group.size} channels; at least one must stay")
                if group.name in choice and not np.array_equal(choice[group.name], stay):
                    raise PlanError(
                        f"{name}: its channels are those of group {group.name!r}, for which other indices are given as well"
                    )
                choice[group.name] = np.array(stay)
            except PlanError as error:
                problems.append(str(error))
    if problems:
        raise PlanError("; ".join(problems))
    return choice


def _units(structure: Structure, name: str, indices: Sequence[int]) -> tuple[Group, set[int]]:
    by_name = {g.name: g for g in structure.groups}
    if name in by_name and by_name[name].held is None:
        group = by_name[name]
        return group, set(checked(name, group.size, indices))
    made = [g for g in structure.groups if name in g.producers and not g.outer]
    free = [g for g in made if g.held is None]
    if not free:
        if made or name in by_name:
            held = made[0].held if made else by_name[name].held
            raise PlanError(f"{name}: nothing can be removed here: it {held}")
        paths = {m for g in structure.groups for m in g.producers} | set(by_name)
        beside = [g.name for g in structure.groups if name in g.modules and not g.outer]
        if beside:
            raise PlanError(
                f"{name}: this layer makes no channels of its own; those that pass through it belong to {', '.join(beside)}"
            )
        near = difflib.get_close_matches(name, paths, 3)
        raise PlanError(f"no layer or group {name!r}" + (f"; similar: {', '.join(near)}" if near else ""))
    if len(free) > 1:
        raise PlanError(
            f"{name}: its output belongs to several groups; name one of {', '.join(g.name for g in free)}"
        )
    group = free[0]
    axis = next(
        p for p in structure.positions[group.name]
        if structure.captured.names[p.placeholder].rpartition(".")[0] == name
        and any(m.produces and m.axis == p.axis and m.parameter == structure.captured.names[p.placeholder] for m in group.members)
    )  # fmt: skip
    chosen = checked(name, len(axis.unit), indices)
    fixed = [i for i in chosen if axis.unit[i] < 0]
    if fixed:
        raise PlanError(f"{name}: channel {fixed[0]} cannot be removed")
    return group, {int(axis.unit[i]) for i in chosen}
