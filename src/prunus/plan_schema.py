"""What the JSON of a plan may hold, and what is wrong with one that does not."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable
from typing import Any

from prunus.errors import PlanError

__all__ = ["PLAN_ENTRIES", "checked", "entry_problems", "group_problems", "layer_problems"]

# entries of the JSON: their types, and whether a plan may lack them
_Entries = dict[str, tuple[type, bool]]
PLAN_ENTRIES: _Entries = {
    "prunus_plan": (int, False),
    "architecture": (str, False),
    "groups": (list, False),
    "inputs": (dict, True),
    "method": (str, True),
    "target": (dict, True),
    "keep_class": (bool, True),
    "seed": (int, True),
    "allocation": (str, True),
    "options": (dict, True),
    "layers": (list, True),
    "biases": (list, True),
    "outputs": (dict, True),
    "then": (dict, True),
}
_LAYER_ENTRIES: _Entries = {
    "path": (str, False),
    "method": (str, False),
    "ranks": (list, False),
    "shape": (list, False),
    "bias": (bool, False),
    "options": (dict, True),
}
_GROUP_ENTRIES: _Entries = {
    "name": (str, False),
    "size": (int, False),
    "keep": (list, False),
    "members": (list, True),
}
_WORDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object", bool: "true or false"}


def entry_problems(content: dict[str, Any], entries: _Entries, where: str) -> list[str]:
    """What is missing, too much or of another type."""
    problems = [f"{where} has an unknown entry {key!r}" for key in content if key not in entries]
    for key, (kind, optional) in entries.items():
        if key not in content:
            problems += [] if optional else [f"{where} has no entry {key!r}"]
        elif not isinstance(content[key], kind) or (kind is int and isinstance(content[key], bool)):
            problems.append(f"entry {key!r} of {where} is {type(content[key]).__name__}, not {_WORDS[kind]}")
    return problems


def group_problems(position: int, entry: Any) -> list[str]:
    """What is wrong with the entry of a group."""
    if not isinstance(entry, dict):
        return [f"group {position} is {type(entry).__name__}, not an object"]
    where = f"group {entry.get('name', position)!r}"
    problems = entry_problems(entry, _GROUP_ENTRIES, where)
    if problems:
        return problems
    for member in entry.get("members", ()):
        if not isinstance(member, list) or [type(part) for part in member] != [str, int]:
            return [f"a member of {where} is {member!r}, not a parameter's name and an axis"]
    try:
        checked(entry["name"], entry["size"], entry["keep"])
    except PlanError as error:
        return [str(error)]
    return []


def layer_problems(position: int, entry: Any) -> list[str]:
    """What is wrong with the entry of a layer that is replaced."""
    if not isinstance(entry, dict):
        return [f"layer {position} is {type(entry).__name__}, not an object"]
    where = f"layer {entry.get('path', position)!r}"
    problems = entry_problems(entry, _LAYER_ENTRIES, where)
    for key in ("ranks", "shape"):
        values = entry.get(key)
        if isinstance(values, list) and not all(type(v) is int and v > 0 for v in values):
            problems.append(f"{key} of {where} are {values!r}, not whole numbers from 1")
    return problems


def checked(name: str, size: int, indices: Iterable[int]) -> tuple[int, ...]:
    """Ascending indices to keep.

    Raises:
        PlanError: out of range, repeated, or not whole numbers.
    """
    try:
        listed = list(indices)
    except TypeError as error:
        raise PlanError(f"{name}: give a list of indices, not {indices!r}") from error
    odd = [i for i in listed if not _is_index(i)]
    if odd:
        raise PlanError(f"{name}: indices are whole numbers, got {odd[:3]}")
    numbers = [operator.index(i) for i in listed]
    outside = [i for i in numbers if not 0 <= i < size]
    if outside:
        raise PlanError(
            f"{name}: index {outside[0]} is out of range; it has {size} channels, 0 to {size - 1}"
        )
    if len(set(numbers)) != len(numbers):
        twice = Counter(numbers).most_common(1)[0][0]
        raise PlanError(f"{name}: index {twice} is listed twice")
    return tuple(sorted(numbers))


def _is_index(value: Any) -> bool:
    if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith(("bool", "bool_")):
        return False  # a mask is no list of indices
    try:
        operator.index(value)
    except TypeError:
        return False
    return True
