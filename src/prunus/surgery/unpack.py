"""Take packs apart whose parts keep different widths: split the packed output first, then reshape part by part."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from prunus.structure.packs import Pack
from prunus.surgery.kept import Kept, shaped

if TYPE_CHECKING:
    from prunus.surgery.rewrite import Rewriting

aten = torch.ops.aten


def is_irregular(pack: Pack, keep: np.ndarray) -> bool:
    """The parts keep different shapes, so that the reshape has no rectangular result."""
    stays = keep[pack.labels]
    # how many of the units stay, of the rows of units, and so on outwards: as many units may be in fewer rows
    levels = (stays.reshape(*stays.shape[:depth], -1).any(-1) for depth in range(2, stays.ndim + 1))
    counts = [level.reshape(len(stays), -1).sum(1) for level in levels]
    return any((each != each[0]).any() for each in counts)


def skipped(packs: list[Pack]) -> set[str]:
    """Nodes that unpacking replaces."""
    names: set[str] = set()
    for pack in packs:
        names.update(node.name for node in pack.path)
        for ends in pack.ends:
            for end in ends:
                names.add(end.name)
                if end.target is not aten.select.int:
                    unbind: Any = end.args[0]
                    names.add(unbind.name)
    return names


def unpack(run: Rewriting, pack: Pack) -> None:
    """Emit, in place of the pack's path, a split of its input and one path per part."""
    source: Any = pack.reshape.args[0]
    sizes = [int(run.keep[torch.from_numpy(part.reshape(-1))].sum()) for part in pack.labels]
    split = run.graph.create_node(
        "call_function",
        aten.split_with_sizes.default,
        (run.new[source], sizes, pack.dim),
        name=f"{pack.reshape.name}_parts",
    )
    split.meta = {k: v for k, v in pack.reshape.meta.items() if k != "val"}
    whole = run.new[source].meta["val"]
    for i, ends in enumerate(pack.ends):
        if not ends:
            continue
        others = np.delete(pack.labels, i, axis=0).reshape(-1)
        keep = run.keep.clone()
        keep[torch.from_numpy(others)] = False
        branch = run.branch(keep, f"_part{i}")
        with_sizes = list(whole.shape)
        with_sizes[pack.dim] = sizes[i]
        part = run.graph.create_node(
            "call_function", operator.getitem, (split, i), name=f"{pack.reshape.name}_part_{i}"
        )
        part.meta = {**split.meta, "val": whole.new_empty(with_sizes)}
        branch.new[source] = part
        for node in pack.path:
            _emit(branch, node)
        last = pack.path[-1]
        end = run.graph.create_node(
            "call_function", aten.select.int, (branch.new[last], pack.axis, 0), name=ends[0].name
        )
        end.name = ends[0].name  # what follows knows it by this
        end.meta = dict(ends[0].meta)
        what: Kept = branch.kept(ends[0])
        end.meta["val"] = shaped(ends[0].meta["val"], what)
        for node in ends:
            run.new[node] = end
    split.meta["val"] = [user.meta["val"] for user in split.users]


def _emit(branch: Rewriting, node: fx.Node) -> None:
    """Copy a node, and before it the sizes that it is told and that are only computed later."""
    for used in node.all_input_nodes:
        if used not in branch.new:
            _emit(branch, used)
    branch.emit(node)
