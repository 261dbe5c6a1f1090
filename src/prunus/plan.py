"""The plan: what is kept of every group. Everything above it decides, everything below it executes.

A plan is plain immutable data and versioned JSON, made for one architecture and independent of the weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import operator
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import PlanError

VERSION = 1
MAX_BYTES = 256 * 1024 * 1024
_SHOWN = 10


@dataclass(frozen=True)
class GroupPlan:
    """What one group keeps.

    Attributes:
        name: the group's name in the structure.
        size: how many units it has.
        keep: ascending indices of the units that stay.
        members: (parameter name, axis) pairs that the group occupies, for the reader.
    """

    name: str
    size: int
    keep: tuple[int, ...]
    members: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class LayerPlan:
    """What one layer is replaced by.

    Attributes:
        path: of the module.
        method: name of the method that factors its weight.
        ranks: of the factors, per group of a convolution.
        shape: of the weight.
        bias: the last of the layers that replace it has a bias.
        options: those of the method that differ from its defaults.
    """

    path: str
    method: str
    ranks: tuple[int, ...]
    shape: tuple[int, ...]
    bias: bool
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A frozen decision, editable through `with_keep` or as JSON.

    Attributes:
        architecture: hash of the model that it was made for.
        groups: the groups that lose something.
        inputs: description of the example inputs, enough to capture a fresh model again.
        method: name of the criterion.
        target: what was asked for.
        keep_class: constraints were added so that the user's own class still runs.
        seed: of anything drawn at random.
        allocation: how numbers of channels were chosen under the target; `"manual"` where the user gave them.
        options: those of `Options` that differ from the defaults.
        layers: the layers that are replaced by chains of smaller ones.
        biases: paths of layers without a bias that get one, of zeros unless they are repaired.
        then: what is done with the model that results: a plan of its own, for its architecture.
        version: of the format.
    """

    architecture: str
    groups: tuple[GroupPlan, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    target: dict[str, float] = field(default_factory=dict)
    keep_class: bool = False
    seed: int = 0
    allocation: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    layers: tuple[LayerPlan, ...] = ()
    biases: tuple[str, ...] = ()
    then: Plan | None = None
    version: int = VERSION

    def followed_by(self, other: Plan) -> Plan:
        """A plan that does what this one does, and then what `other` does with the model that results."""
        return dataclasses.replace(self, then=other if self.then is None else self.then.followed_by(other))

    @property
    def keep(self) -> dict[str, tuple[int, ...]]:
        """Group name -> indices that stay."""
        return {group.name: group.keep for group in self.groups}

    def with_keep(self, name: str, indices: Iterable[int]) -> Plan:
        """A plan in which group `name` keeps just `indices`.

        Raises:
            PlanError: the plan has no such group, or the indices do not fit it.
        """
        for group in self.groups:
            if group.name == name:
                changed = dataclasses.replace(group, keep=checked(name, group.size, indices))
                return dataclasses.replace(
                    self, groups=tuple(changed if g is group else g for g in self.groups)
                )
        raise PlanError(
            f"the plan has no group {name!r}; it has {', '.join(g.name for g in self.groups[:8])}"
        )

    def to_json(self) -> str:
        return json.dumps(self._content(), indent=1, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        own = dataclasses.replace(self, then=None)
        content = {"prunus_plan": self.version, **dataclasses.asdict(own)}
        del content["version"], content["then"]
        if not self.biases:
            del content["biases"]
        return content if self.then is None else {**content, "then": self.then._content()}

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: not JSON, not a plan, of a newer version, or inconsistent; lists all problems.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"this is no plan: it is not valid JSON ({error})") from error
        return Plan._of(content)

    @staticmethod
    def _of(content: Any) -> Plan:
        if not isinstance(content, dict) or "prunus_plan" not in content:
            raise PlanError("this is no plan: it has no entry 'prunus_plan'")
        if content["prunus_plan"] != VERSION or isinstance(content["prunus_plan"], bool):
            raise PlanError(
                f"this plan has format version {content['prunus_plan']!r}; this prunus reads version {VERSION}"
            )
        problems = _entry_problems(content, _ENTRIES, "the plan")
        groups, target = content.get("groups"), content.get("target")
        if isinstance(groups, list):
            problems += [p for i, entry in enumerate(groups) for p in _group_problems(i, entry)]
            names = [entry.get("name") for entry in groups if isinstance(entry, dict)]
            problems += [f"group {n!r} appears twice" for n in dict.fromkeys(names) if names.count(n) > 1]
        if isinstance(content.get("layers"), list):
            problems += [p for i, entry in enumerate(content["layers"]) for p in _layer_problems(i, entry)]
        if isinstance(biases := content.get("biases"), list) and not all(isinstance(b, str) for b in biases):
            problems.append("entry 'biases' of the plan lists something else than paths of layers")
        if isinstance(target, dict):
            problems += [
                f"target {key!r} is {value!r}, not a number"
                for key, value in target.items()
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value)
            ]
        if problems:
            raise PlanError("this plan is damaged: " + "; ".join(problems[:_SHOWN]))
        del content["prunus_plan"]
        content["groups"] = tuple(_group(entry) for entry in content["groups"])
        content["layers"] = tuple(_layer(entry) for entry in content.get("layers", ()))
        content["biases"] = tuple(content.get("biases", ()))
        content["then"] = Plan._of(content["then"]) if "then" in content else None
        return Plan(**content)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, all or nothing.

        Raises:
            PlanError: it cannot be written there.
        """
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        try:
            temporary.write_text(self.to_json(), encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise PlanError(f"the plan cannot be written to {path}: {error.strerror or error}") from error

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file.

        Raises:
            PlanError: no such file, cannot be read, too large, or not a plan.
        """
        path = Path(path)
        if not path.is_file():
            raise PlanError(f"no plan at {path}")
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(f"{path} has {path.stat().st_size:,} bytes: too large for a plan")
        try:
            return Plan.from_json(path.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise PlanError(f"{path} is no plan: it is not text") from error
        except OSError as error:
            raise PlanError(f"{path} cannot be read: {error.strerror or error}") from error


# entries of the JSON: their types, and whether a plan may lack them
_Entries = dict[str, tuple[type, bool]]
_ENTRIES: _Entries = {
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


def _entry_problems(content: dict[str, Any], entries: _Entries, where: str) -> list[str]:
    """What is missing, too much or of another type."""
    problems = [f"{where} has an unknown entry {key!r}" for key in content if key not in entries]
    for key, (kind, optional) in entries.items():
        if key not in content:
            problems += [] if optional else [f"{where} has no entry {key!r}"]
        elif not isinstance(content[key], kind) or (kind is int and isinstance(content[key], bool)):
            problems.append(f"entry {key!r} of {where} is {type(content[key]).__name__}, not {_WORDS[kind]}")
    return problems


def _group_problems(position: int, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"group {position} is {type(entry).__name__}, not an object"]
    where = f"group {entry.get('name', position)!r}"
    problems = _entry_problems(entry, _GROUP_ENTRIES, where)
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


def _group(entry: dict[str, Any]) -> GroupPlan:
    members = tuple((parameter, axis) for parameter, axis in entry.get("members", ()))
    return GroupPlan(entry["name"], entry["size"], tuple(sorted(entry["keep"])), members)


def _layer_problems(position: int, entry: Any) -> list[str]:
    if not isinstance(entry, dict):
        return [f"layer {position} is {type(entry).__name__}, not an object"]
    where = f"layer {entry.get('path', position)!r}"
    problems = _entry_problems(entry, _LAYER_ENTRIES, where)
    for key in ("ranks", "shape"):
        values = entry.get(key)
        if isinstance(values, list) and not all(type(v) is int and v > 0 for v in values):
            problems.append(f"{key} of {where} are {values!r}, not whole numbers from 1")
    return problems


def _layer(entry: dict[str, Any]) -> LayerPlan:
    ranks, shape = tuple(entry["ranks"]), tuple(entry["shape"])
    return LayerPlan(
        entry["path"], entry["method"], ranks, shape, entry["bias"], dict(entry.get("options", {}))
    )


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
        twice = next(i for i in numbers if numbers.count(i) > 1)
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
