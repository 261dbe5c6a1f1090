"""The plan: what is kept of every group. Everything above it decides, everything below it executes.

A plan is plain immutable data and versioned JSON, made for one architecture and independent of the weights.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from prunus.capture import architecture_hash
from prunus.describe import describe, outputs_of
from prunus.errors import PlanError
from prunus.files import as_path, read_text, shown, write_file
from prunus.masks import masked_units, masks_of, structure_for
from prunus.plan_schema import PLAN_ENTRIES, checked, entry_problems, group_problems, layer_problems
from prunus.structure import Structure

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
        outputs: path of an output -> `"free"` or `"drop"`: which may get narrower, and which are not returned.
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
    outputs: dict[str, str] = field(default_factory=dict)
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

    @staticmethod
    def from_masks(source: Any, example_inputs: Any = None) -> Plan:
        """The plan that masks mean: units leave whose weights are all zero, in the layers that make them or in those that read them.

        Masks of `torch.nn.utils.prune` count whether they are still there or have been made permanent. What a unit with a bias
        still puts out is a constant, which `apply` folds into later layers where it can; see `method="dead"` for what leaves
        without any change.

        Args:
            source: from `prunus.analyze`, or a module.
            example_inputs: of a module.

        Example:
            >>> import torch, prunus
            >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)).eval()
            >>> with torch.no_grad():
            ...     _ = net[0].weight[1:3].zero_()
            >>> plan = prunus.Plan.from_masks(net, torch.randn(2, 4))
            >>> plan.keep
            {'0': (0, 3, 4, 5)}
            >>> plan.masks(net)["0.weight"][:, 0].int().tolist()
            [1, 0, 0, 1, 1, 1]
        """
        structure = structure_for(source, example_inputs)
        return plan_of(structure, masked_units(structure), "masks", {}, 0)

    def masks(self, source: Any) -> dict[str, Tensor]:
        """Name of every parameter -> bool of its shape, False where an output or an input leaves; of this plan, without `then`.

        Args:
            source: the structure that the plan was made for, from `prunus.analyze`, or a module of the same architecture.

        Raises:
            PlanError: the plan is for another architecture.
        """
        structure = structure_for(source, None, self.inputs, self.outputs, self.keep_class)
        if self.architecture != architecture_hash(structure.captured):
            raise PlanError(
                "this plan was made for another architecture, so it says nothing about these weights"
            )
        return masks_of(structure, structure.keep_labels(self.keep))

    def to_json(self) -> str:
        return json.dumps(self._content(), indent=1, allow_nan=False)

    def _content(self) -> dict[str, Any]:
        own = dataclasses.replace(self, then=None)
        content = {"prunus_plan": self.version, **dataclasses.asdict(own)}
        del content["version"], content["then"]
        for name in ("biases", "outputs"):
            if not content[name]:
                del content[name]
        return content if self.then is None else {**content, "then": self.then._content()}

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: not JSON, not a plan, of a newer version, or inconsistent; lists all problems.
        """
        if not isinstance(text, str | bytes | bytearray):
            raise PlanError(f"this is no plan: a {type(text).__name__} instead of JSON text")
        try:
            content = json.loads(text, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            raise PlanError(f"this is no plan: it is not valid JSON ({error})") from error
        try:
            return Plan._of(content)
        except RecursionError as error:
            raise PlanError("this is no plan: too many plans follow each other in it") from error

    @staticmethod
    def _of(content: Any) -> Plan:
        if not isinstance(content, dict) or "prunus_plan" not in content:
            raise PlanError("this is no plan: it has no entry 'prunus_plan'")
        if content["prunus_plan"] != VERSION or isinstance(content["prunus_plan"], bool):
            raise PlanError(
                f"this plan has format version {content['prunus_plan']!r}; this prunus reads version {VERSION}"
            )
        problems = entry_problems(content, PLAN_ENTRIES, "the plan")
        groups, target = content.get("groups"), content.get("target")
        if isinstance(groups, list):
            problems += [p for i, entry in enumerate(groups) for p in group_problems(i, entry)]
            names = Counter(str(entry.get("name")) for entry in groups if isinstance(entry, dict))
            problems += [f"group {name!r} appears twice" for name, count in names.items() if count > 1]
        if isinstance(content.get("layers"), list):
            problems += [p for i, entry in enumerate(content["layers"]) for p in layer_problems(i, entry)]
        if isinstance(biases := content.get("biases"), list) and not all(isinstance(b, str) for b in biases):
            problems.append("entry 'biases' of the plan lists something else than paths of layers")
        if isinstance(outputs := content.get("outputs"), dict):
            problems += [
                f"output {key!r} is {state!r}, not 'free' or 'drop'"
                for key, state in outputs.items()
                if state not in ("free", "drop")
            ]
        if isinstance(target, dict):
            problems += [
                f"target {key!r} is {repr(value)[:40]}, not a number"
                for key, value in target.items()
                if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300
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
        write_file(as_path(path, PlanError), self.to_json(), PlanError, "plan")

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Plan:
        """Read a plan from a file.

        Raises:
            PlanError: no such file, cannot be read, too large, or not a plan.
        """
        path = as_path(path, PlanError)
        try:
            return Plan.from_json(read_text(path, PlanError, "plan", MAX_BYTES))
        except PlanError as error:
            named = shown(path) in str(error)
            raise error if named else PlanError(f"{shown(path)}: {error}") from error


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _group(entry: dict[str, Any]) -> GroupPlan:
    members = tuple((parameter, axis) for parameter, axis in entry.get("members", ()))
    return GroupPlan(entry["name"], entry["size"], tuple(sorted(entry["keep"])), members)


def _layer(entry: dict[str, Any]) -> LayerPlan:
    ranks, shape = tuple(entry["ranks"]), tuple(entry["shape"])
    return LayerPlan(
        entry["path"], entry["method"], ranks, shape, entry["bias"], dict(entry.get("options", {}))
    )


def plan_of(
    structure: Structure, choice: Mapping[str, np.ndarray], method: str, target: dict[str, float], seed: int
) -> Plan:
    """The plan in which groups keep the units that are chosen."""
    chosen = [g for g in structure.groups if len(choice.get(g.name, g.units)) < g.size]
    members = [tuple((m.parameter, m.axis) for m in g.members) for g in chosen]
    kept = [tuple(int(i) for i in choice[g.name]) for g in chosen]
    rows = zip(chosen, kept, members, strict=True)
    return Plan(
        architecture=architecture_hash(structure.captured),
        groups=tuple(GroupPlan(g.name, g.size, keep, mine) for g, keep, mine in rows),
        inputs=describe(structure.captured),
        method=method,
        target=target,
        keep_class=structure.keep_class,
        seed=seed,
        outputs=outputs_of(structure.captured),
    )
