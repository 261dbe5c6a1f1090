"""The plan: what is kept of every group. Everything above it decides, everything below it executes.

A plan is plain immutable data and versioned JSON, made for one architecture and independent of the weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prunus.errors import PlanError

VERSION = 1
MAX_BYTES = 256 * 1024 * 1024


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
        version: of the format.
    """

    architecture: str
    groups: tuple[GroupPlan, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    target: dict[str, float] = field(default_factory=dict)
    keep_class: bool = False
    seed: int = 0
    version: int = VERSION

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
        content = {"prunus_plan": self.version, **dataclasses.asdict(self)}
        del content["version"]
        return json.dumps(content, indent=1, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: not JSON, not a plan, of a newer version, or inconsistent; lists all problems.
        """
        try:
            content = json.loads(text)
        except ValueError as error:
            raise PlanError(f"this is no plan: it is not valid JSON ({error})") from error
        if not isinstance(content, dict) or "prunus_plan" not in content:
            raise PlanError("this is no plan: it has no entry 'prunus_plan'")
        if content["prunus_plan"] != VERSION:
            raise PlanError(
                f"this plan has format version {content['prunus_plan']!r}; this prunus reads version {VERSION}"
            )
        try:
            groups = tuple(_group(entry) for entry in content["groups"])
            names = [g.name for g in groups]
            if len(set(names)) != len(names):
                raise PlanError("a group appears twice in the plan")
            return Plan(
                architecture=str(content["architecture"]),
                groups=groups,
                inputs=dict(content.get("inputs", {})),
                method=str(content.get("method", "")),
                target={str(k): float(v) for k, v in content.get("target", {}).items()},
                keep_class=bool(content.get("keep_class", False)),
                seed=int(content.get("seed", 0)),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"this plan is damaged: {type(error).__name__}: {error}") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, all or nothing."""
        path = Path(path)
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(self.to_json(), encoding="utf-8")
        os.replace(temporary, path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file.

        Raises:
            PlanError: no such file, too large, or not a plan.
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


def _group(entry: dict[str, Any]) -> GroupPlan:
    name, size = str(entry["name"]), int(entry["size"])
    members = tuple((str(p), int(a)) for p, a in entry.get("members", ()))
    return GroupPlan(name, size, checked(name, size, entry["keep"]), members)


def checked(name: str, size: int, indices: Iterable[int]) -> tuple[int, ...]:
    """Ascending indices to keep.

    Raises:
        PlanError: out of range, repeated, not whole numbers, or none.
    """
    listed = list(indices)
    odd = [i for i in listed if isinstance(i, bool) or not hasattr(i, "__index__")]
    if odd:
        raise PlanError(f"{name}: indices are whole numbers, got {odd[:3]}")
    numbers = [int(i) for i in listed]
    outside = [i for i in numbers if not 0 <= i < size]
    if outside:
        raise PlanError(
            f"{name}: index {outside[0]} is out of range; it has {size} channels, 0 to {size - 1}"
        )
    if len(set(numbers)) != len(numbers):
        twice = next(i for i in numbers if numbers.count(i) > 1)
        raise PlanError(f"{name}: index {twice} is listed twice")
    return tuple(sorted(numbers))
