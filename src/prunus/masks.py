"""Between masks on weights and units that stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.allocation.dead import choice_from
from prunus.alone import alone
from prunus.capture import capture, with_outputs
from prunus.criteria import Views
from prunus.describe import asked, rebuild
from prunus.structure import Group, Structure, find_structure
from prunus.structure.labels import compact, varying

__all__ = ["masked_units", "masks_of", "structure_for"]


def masked_units(structure: Structure) -> dict[str, np.ndarray]:
    """Group name -> units that stay, where all others have weights of zero alone: in all layers that make them, or in all that
    read them.

    In groups whose rows must lose equally many, the row with the fewest such units decides, and one unit stays in any case.
    Heads whose channels all are zero leave as heads.
    """
    views = Views(structure)
    views.folded = {}  # a weight behind a layer makes no mask of it
    zero = {group.name: _zero(views, group) for group in structure.prunable}
    whole = choice_from([group for group in structure.prunable if group.outer], zero, {}, 1)
    left = structure.keep_labels(whole)
    inside = [group for group in structure.prunable if not group.outer and _untouched(structure, group, left)]
    return {**whole, **choice_from(inside, zero, {}, 1)}


def _zero(views: Views, group: Group) -> np.ndarray:
    members = views.group(group).members
    made, read = ([m for m in members if m.produces is produces] for produces in (True, False))
    zero = np.zeros(group.size, bool)
    for side in (made, read):
        if side:
            zero |= np.logical_and.reduce([(m.power_sum(1) == 0).cpu().numpy() for m in side])
    return zero


def _untouched(structure: Structure, group: Group, keep: np.ndarray) -> bool:
    """Whether nothing of a group has left with something else."""
    stays = keep[np.isin(structure.units.of_label, group.units)]
    return bool(stays.all())


def masks_of(structure: Structure, keep: np.ndarray) -> dict[str, Tensor]:
    """Name of every parameter -> bool of its shape: what stays of it under `keep` (labels,)."""
    captured = structure.captured
    masks = {}
    for placeholder, tensor in captured.tensors.items():
        if captured.kinds[placeholder] == "parameter":
            tracks = structure.values[placeholder].tracks
            masks[captured.names[placeholder]] = _mask(tuple(tensor.shape), tracks, keep)
    return {name: masks[own] for own in masks for name in (own, *captured.aliases.get(own, ()))}


def _mask(shape: tuple[int, ...], tracks: Sequence[Tensor], keep: np.ndarray) -> Tensor:
    mask = torch.ones(shape, dtype=torch.bool)
    for track in tracks:
        axes = varying(track)
        view = [size if axis in axes else 1 for axis, size in enumerate(shape)]
        mask &= torch.from_numpy(keep[compact(track, axes).numpy()]).reshape(view)
    return mask


@alone
def structure_for(
    source: Any,
    example_inputs: Any,
    described: dict[str, Any] | None = None,
    outputs: Mapping[str, str] | None = None,
    keep_class: bool = False,
) -> Structure:
    """A structure as it is; that of a module, captured with its example inputs or as those of a plan are described."""
    if isinstance(source, Structure):
        return source
    if described is None:
        return find_structure(capture(source, example_inputs))
    captured = with_outputs(capture(source, rebuild(described), asked(described)), outputs)
    return find_structure(captured, keep_class=keep_class)
