"""Where groups lie, and what they are called: after the layer that makes them, or the operator at which several meet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prunus.capture import Captured
from prunus.structure.hashing import distinct
from prunus.structure.labels import Labels
from prunus.structure.solve import Units

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


def meeting_nodes(
    captured: Captured, labels: Labels, units: Units, group_of: np.ndarray, count: int
) -> list[str]:
    """The first operator other than a layer at which units of the group meet, else the first of all."""
    target = {node.name: str(node.target) for node in captured.graph.nodes}
    best, any_node = [""] * count, [""] * count
    statements = [(a, node) for a, _, node in (*labels.edges, *labels.contains)]
    if not statements or not count:
        return best
    number = np.repeat(np.arange(len(statements)), [len(a) for a, _ in statements])
    group = group_of[units.of_label[np.concatenate([a for a, _ in statements])]]
    for key in distinct(number[group >= 0] * count + group[group >= 0]).tolist():
        node, g = statements[key // count][1], key % count
        any_node[g] = any_node[g] or node
        if not any(kind in target.get(node, "") for kind in INPUT_SIDE):
            best[g] = best[g] or node
    return [b or a for b, a in zip(best, any_node, strict=True)]


def group_names(
    members: list[tuple[Member, ...]],
    nodes: list[str],
    units: Units,
    drafts: list[np.ndarray],
    outer: np.ndarray,
) -> list[str]:
    """A lone producer gives its path; several give their common path and the operator at which they meet."""
    order = sorted(range(len(members)), key=lambda g: int(units.first[drafts[g][0]]))
    bases = []
    for g in range(len(members)):
        producers = list(dict.fromkeys(m.module or m.parameter for m in members[g] if m.produces))
        paths = producers or list(dict.fromkeys(m.module or m.parameter for m in members[g]))
        prefix = _common([p.split(".") for p in paths])
        base = paths[0] if len(paths) == 1 else ".".join([*prefix, nodes[g] or "group"])
        bases.append(base + "[rows]" if outer[g] else base)
    names: list[str] = [""] * len(members)
    taken: set[str] = set()
    for g in order:
        name = bases[g]
        if bases.count(name) > 1 and nodes[g] and not name.endswith(nodes[g]):
            name = f"{name}@{nodes[g]}"
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
