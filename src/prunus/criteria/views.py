"""Make the numbers that criteria see from the structure and the weights."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.criteria.base import GroupView, MemberView
from prunus.criteria.batch_norms import batch_norm_gains, batch_norm_scales
from prunus.criteria.reaching import Reaching
from prunus.evidence import Evidence
from prunus.evidence.places import Spot
from prunus.structure import Group, Structure

BLOCK = 1 << 18  # weights at a time, which caches hold


class Views:
    """Makes a `GroupView` for each group of a structure; batch normalizations are folded once.

    Args:
        structure: the structure.
        evidence: what calibration data says, if there is any.
        multiplied: names of the groups whose units disappear in a product of two activations, where a criterion asks.
        mixable: the rows of groups whose channels may be mixed, where a criterion asks.
    """

    def __init__(
        self,
        structure: Structure,
        evidence: Evidence | None = None,
        multiplied: Collection[str] = (),
        mixable: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.structure = structure
        self.evidence = evidence
        self.multiplied = multiplied
        self.mixable = mixable or {}
        self.reaching = Reaching(structure)
        self.folded = batch_norm_gains(self.reaching)
        self.scales = batch_norm_scales(self.reaching)

    def group(self, group: Group) -> GroupView:
        """The group with its weights of two or more dimensions as (units, elements)."""
        members = [*self._parameters(group), *self._computed(group)]
        seen = (
            {key: self.evidence.per_sample(key, group.name) for key in self.evidence.sums}
            if self.evidence
            else {}
        )
        seed = zlib.crc32(group.name.encode())
        samples = self.evidence.samples if self.evidence else 0
        multiplied = group.name in self.multiplied
        return GroupView(
            group.name,
            group.size,
            tuple(members),
            seed,
            seen,
            multiplied,
            samples,
            self.mixable.get(group.name),
        )

    def _parameters(self, group: Group) -> Iterator[MemberView]:
        """Parameters whose own numbers reach an operator."""
        captured = self.structure.captured
        made = {(m.parameter, m.axis): m.produces for m in group.members}
        for position in self.structure.positions[group.name]:
            tensor = captured.tensors[position.placeholder]
            if position.placeholder not in self.reaching.direct or tensor.dim() < 2:
                continue
            if captured.kinds[position.placeholder] == "parameter":
                name = captured.names[position.placeholder]
                produces = made.get((name, position.axis), False)
                spot = Spot((position.axis,), position.unit)
                yield self._member(name, spot, produces, position.placeholder, tensor.detach(), group.size)

    def _computed(self, group: Group) -> Iterator[MemberView]:
        """What the graph makes of parameters, as operators read it."""
        for node, spot, produces in self.reaching.spots.get(group.name, ()) if self.reaching.made else ():
            tensor = self.reaching.tensor(node)
            if tensor is not None and tensor.is_floating_point():
                name = self.reaching.named(node)[0]
                yield self._member(name, spot, produces, node.name, tensor, group.size)

    def _member(
        self, name: str, spot: Spot, produces: bool, node: str, tensor: Tensor, size: int
    ) -> MemberView:
        scale = self.scales.get(node) if produces else None
        return PlacedMember(name, spot, produces, tensor, self.folded.get(node), scale, size)


class PlacedMember(MemberView):
    """A member whose weights are folded and gathered by unit only when a criterion asks for them."""

    _tensor: Tensor
    _gain: Tensor | None
    _scale: Tensor | None
    _axes: tuple[int, ...]
    _unit: np.ndarray
    _size: int

    def __init__(
        self,
        name: str,
        spot: Spot,
        produces: bool,
        tensor: Tensor,
        gain: Tensor | None,
        scale: Tensor | None,
        size: int,
    ) -> None:
        values: dict[str, Any] = {"parameter": name, "axis": spot.axes[0], "produces": produces}
        values |= {"_tensor": tensor, "_gain": gain, "_scale": scale, "_size": size}
        values |= {"_axes": spot.axes, "_unit": spot.units.reshape(-1)}
        for key, value in values.items():
            object.__setattr__(self, key, value)

    @cached_property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(units, elements), see `MemberView`."""
        weight = self._tensor
        if self._gain is not None:
            weight = weight * self._gain.view(-1, *(1,) * (weight.dim() - 1))
        rows = weight.movedim(self._axes, tuple(range(len(self._axes)))).reshape(len(self._unit), -1)
        return by_unit(rows, self._unit, self._size)

    @cached_property
    def norm_scale(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(units, positions), see `MemberView`."""
        if self._scale is None or len(self._scale) != len(self._unit):
            return None
        return by_unit(self._scale[:, None], self._unit, self._size)

    def power_sum(self, power: int) -> Tensor:
        """See `MemberView`: summed where the weights lie, which moves none of them."""
        if len(self._axes) > 1:
            return super().power_sum(power)
        weight = self._tensor.float()
        gain = None if self._gain is None else self._gain.float().abs() ** power  # along axis 0
        if self.axis == 0:
            sums = torch.linalg.vector_norm(weight.reshape(len(weight), -1), power, 1) ** power
            sums = sums if gain is None else sums * gain
        else:
            sums = _column_sums(weight, self.axis, power, gain)
        used = torch.from_numpy(self._unit >= 0).to(sums.device)
        unit = torch.from_numpy(self._unit).to(sums.device)[used]
        return sums.new_zeros(self._size).index_add_(0, unit, sums[used])


def _column_sums(weight: Tensor, axis: int, power: int, gain: Tensor | None) -> Tensor:
    """(n,) sums of powers for the n positions of an axis behind the first, each row times its gain.

    Rows are taken a few at a time: one reduction over axes in front of the one that is kept reads the weights in an order that
    caches do not like, and is ten times slower.
    """
    size = weight.shape[axis]
    rows = (
        weight.flatten(0, axis - 1) if gain is None else weight.flatten(1, axis - 1) if axis > 1 else weight
    )
    rows = rows.reshape(len(rows), -1)
    gain = rows.new_ones(len(rows)) if gain is None else gain
    sums = rows.new_zeros(rows.shape[1])
    step = max(1, BLOCK // max(1, len(sums)))
    for part, factor in zip(rows.split(step), gain.split(step), strict=True):
        sums += factor @ (part.square() if power == 2 else part.abs() ** power)
    behind = int(np.prod(weight.shape[axis + 1 :]))
    return sums.view(-1, size, behind).sum((0, 2))


def by_unit(rows: Tensor, unit: np.ndarray, size: int) -> Tensor:
    """Gather (positions, elements) rows into (units, elements), zero where a unit has fewer positions than others."""
    if len(unit) == size and np.array_equal(unit, np.arange(size)):
        return rows
    order = np.argsort(unit, kind="stable")
    order = order[np.searchsorted(unit[order], 0) :]
    counts = np.bincount(unit[order], minlength=size)
    width = int(counts.max())
    if (counts == width).all():
        return rows[torch.from_numpy(order)].reshape(size, -1)
    slot = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    out = rows.new_zeros(size, width, rows.shape[1])
    out[torch.from_numpy(unit[order]), torch.from_numpy(slot)] = rows[torch.from_numpy(order)]
    return out.reshape(size, -1)
