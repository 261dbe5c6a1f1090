"""Where groups lie, and what they are called: after the layer that makes them, or the operator at which several meet."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from torch import fx

from prunus.capture import Captured
from prunus.structure.hashing import distinct
from prunus.structure.labels import Labels
from prunus.structure.solve import Units
from prunus.structure.source import module_of

INPUT_SIDE = {
    "linear",
    "conv",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "instance_norm",
    "rms_norm",
    "embedding",
}


@dataclass(frozen=True)
class Member:
    """An axis of a parameter or buffer that a group occupies.

    Attributes:
        parameter: qualified name in the user's model.
        axis: the axis along which the group's channels lie.
        produces: the axis is an output of its layer: removing here makes a feature disappear.
    """

    parameter: str
    axis: int
    produces: bool = False

    @property
    def module(self) -> str:
        """Path of the module that owns the parameter."""
        return self.parameter.rpartition(".")[0]


@dataclass(frozen=True)
class Meeting:
    """Where units of a group meet.

    Attributes:
        node: the first operator other than a layer, else the first of all; empty where there is none.
        place: path of the module in whose forward all such operators are called; empty for the model's own.
    """

    node: str = ""
    place: str = ""

    @property
    def name(self) -> str:
        """Of the operator, as the user's code calls it: without the underscore of one that works in place."""
        return re.sub(r"_(_\d+)?$", r"\1", self.node)


def meetings(
    captured: Captured, labels: Labels, units: Units, group_of: np.ndarray, count: int
) -> list[Meeting]:
    """Where units of each group meet."""
    nodes = {node.name: node for node in captured.graph.nodes}
    statements = [(a, node) for a, _, node in (*labels.edges, *labels.contains)]
    if not statements or not count:
        return [Meeting()] * count
    number = np.repeat(np.arange(len(statements)), [len(a) for a, _ in statements])
    group = group_of[units.of_label[np.concatenate([a for a, _ in statements])]]
    met: list[list[str]] = [[] for _ in range(count)]
    for key in distinct(number[group >= 0] * count + group[group >= 0]).tolist():
        met[key % count].append(statements[key // count][1])
    return [_meeting(names, nodes) for names in met]


def _meeting(names: list[str], nodes: dict[str, fx.Node]) -> Meeting:
    """Of all operators at which units of one group meet, in the order of the graph."""

    def is_layer(name: str) -> bool:
        return name in nodes and any(kind in str(nodes[name].target) for kind in INPUT_SIDE)

    names = [name for name in names if not is_layer(name)] or names
    paths = [module_of(nodes[name]).split(".") for name in names if name in nodes]
    return Meeting(names[0] if names else "", ".".join(_common(paths)))


def group_names(
    members: list[tuple[Member, ...]],
    met: list[Meeting],
    units: Units,
    drafts: list[np.ndarray],
    outer: np.ndarray,
) -> list[str]:
    """A lone producer gives its path; several give the operator at which they meet, and where all of that is."""
    order = sorted(range(len(members)), key=lambda g: int(units.first[drafts[g][0]]))
    bases = []
    short = []
    for g in range(len(members)):
        producers = list(dict.fromkeys(m.module or m.parameter for m in members[g] if m.produces))
        paths = producers or list(dict.fromkeys(m.module or m.parameter for m in members[g]))
        prefix = ".".join(_common([p.split(".") for p in paths])) or met[g].place
        base = paths[0] if len(paths) == 1 else ".".join(filter(None, (prefix, met[g].name or "group")))
        bases.append(base + "[rows]" if outer[g] else base)
        # a number tells operators of one forward apart; elsewhere the place does
        plain = prefix and len(paths) > 1 and not outer[g]
        short.append(re.sub(r"_\d+$", "", base) if plain else bases[-1])
    bases = [s if short.count(s) == 1 and s not in bases else b for s, b in zip(short, bases, strict=True)]
    names: list[str] = [""] * len(members)
    taken: set[str] = set()
    for g in order:
        name, node = bases[g], met[g].name
        if bases.count(name) > 1 and node and not name.endswith(node):
            name = f"{name}@{node}"
        count = 1
        while (unique := name if count == 1 else f"{name}#{count}") in taken:
            count += 1
        taken.add(unique)
        names[g] = unique
    return names


def _common(paths: list[list[str]]) -> list[str]:
    """The first parts that all paths share."""
    prefix = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        prefix.append(parts[0])
    return prefix
