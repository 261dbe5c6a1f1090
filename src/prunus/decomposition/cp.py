"""Thin layers for one, by sums of rank-one kernels (canonical polyadic decomposition)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.decomposition.als import als, decomposed, sliced
from prunus.decomposition.base import Curve, Method, register
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.errors import ConfigError

__all__ = ["CP"]

_CURVE_SWEEPS = 8
_CURVE_RANKS = 8
_RIDGE = 1e-7


@register
@dataclass(frozen=True)
class CP(Method):
    r"""$W = \sum_r a_r \circ b_r \circ c_r$: pointwise, depthwise, pointwise (Lebedev et al. 2015).

    Components never grow without bounds to cancel each other: their sizes are penalized, so that none gets larger than a few
    times the kernel, and training the result stays possible.

    Attributes:
        separable: one depthwise layer for each spatial axis (four layers for a kernel of two axes) instead of one for all.
        starts: how many starting points are tried; those after the first are random.
        seed: of these.
    """

    separable: bool = False
    starts: int = 1
    seed: int = 0
    name = "cp"

    def __post_init__(self) -> None:
        if isinstance(self.starts, bool) or not isinstance(self.starts, int) or self.starts < 1:
            raise ConfigError(f"CP(starts={self.starts!r}): say a whole number, at least 1")

    def refusal(self, geometry: Geometry) -> str | None:
        if geometry.taps == 1:
            return "looks at one position only: use SVD"
        if geometry.group_inputs == 1 and geometry.group_outputs == 1:
            return "is depthwise: each channel has a kernel of its own"
        return None

    def full(self, geometry: Geometry) -> tuple[int, ...]:
        return (min(geometry.group_inputs, geometry.group_outputs) * geometry.taps,)

    def layout(self, geometry: Geometry, ranks: tuple[Any, ...]) -> list[Geometry]:
        g, (rank,) = geometry, ranks
        middle = rank * g.groups
        first, last = g.pointwise(g.inputs, middle, g.groups), g.pointwise(middle, g.outputs, g.groups)
        return [first, *(g.along(axes, middle, middle, middle) for axes in self._axes(g)), last]

    def fit(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Tensor]:
        white = metric.whiten_channels(kernel)
        fitted = [self._factors(tensor, geometry, ranks[0]) for tensor in white]
        outputs, inputs, *spatial = (torch.stack(factors) for factors in zip(*fitted, strict=True))
        first = metric.unwhiten_inputs(inputs.mT)  # (groups, rank, inputs)
        if metric.second is not None and ranks[0] < self.full(geometry)[0]:
            taps = _joined(spatial)
            features = first[..., None] * taps.mT[:, :, None, :]
            outputs = metric.regress(kernel, features, ridge=_RIDGE)
        return [first[..., None], *(factor.mT for factor in spatial), outputs[..., None]]

    def curve(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> Curve:
        white = metric.whiten_channels(kernel)
        total = float((white**2).sum()) or 1.0
        full, g = self.full(geometry)[0], geometry
        pays = g.weights // g.groups // (g.group_inputs + g.group_outputs + g.taps)
        most = max(1, min(full, pays))
        ranks = np.unique(np.round(np.geomspace(max(1, most / 32), most, _CURVE_RANKS)).astype(int))
        lost = []
        for rank in ranks:
            factored = [
                als(sliced(tensor, self._shape(g), int(rank)), tensor, self._shape(g), sweeps=_CURVE_SWEEPS)
                for tensor in white
            ]
            lost.append(sum(each.error**2 * float((t**2).sum()) for each, t in zip(factored, white, strict=True)) / total)  # fmt: skip
        lost = np.minimum.accumulate(np.clip(lost, 0, 1))
        between = np.unique(np.round(np.geomspace(ranks[0], most, 8 * _CURVE_RANKS)).astype(int))
        return Curve(between[:, None], np.interp(between, ranks, lost))

    def unfoldings(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> list[Tensor]:
        return []

    def _factors(self, tensor: Tensor, geometry: Geometry, rank: int) -> list[Tensor]:
        """Factors (outputs, rank), (inputs, rank), (taps, rank)... of (outputs, inputs, taps), of balanced sizes."""
        shape = self._shape(geometry)
        if rank >= self.full(geometry)[0]:
            return sliced(tensor, shape, rank)
        best = decomposed(tensor, shape, rank)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.starts - 1):
            sizes = (*tensor.shape[:2], *shape)
            random = [torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in sizes]
            other = als([factor.to(tensor.device) for factor in random], tensor, shape)
            best = min(best, other, key=lambda each: each.error)
        return best.factors

    def _axes(self, geometry: Geometry) -> list[tuple[int, ...]]:
        axes = tuple(range(len(geometry.kernel)))
        return [(axis,) for axis in axes] if self.separable else [axes]

    def _shape(self, geometry: Geometry) -> tuple[int, ...]:
        return tuple(math.prod(geometry.kernel[i] for i in axes) for axes in self._axes(geometry))


def _joined(spatial: list[Tensor]) -> Tensor:
    """(groups, taps, rank) from factors along each axis."""
    joined = spatial[0]
    for factor in spatial[1:]:
        joined = (joined[:, :, None] * factor[:, None]).flatten(1, 2)
    return joined
