"""Two layers for one, each with the kernel's taps along some axes only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunus.decomposition.base import Curve, Method, register
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.decomposition.svd import matrix_factors, spectrum_curve

__all__ = ["SpatialSVD"]


@register
@dataclass(frozen=True)
class SpatialSVD(Method):
    """A k x 1 layer to r channels, then a 1 x k layer to the outputs (Jaderberg et al. 2014, scheme 2).

    The singular values are those of the kernel as an (inputs * height) x (outputs * width) matrix, over whitened channels where
    moments are known; the second layer is then fitted to the outputs. For kernels of three axes, the first axis goes to the
    first layer, the others to the second.
    """

    name = "spatial_svd"

    def refusal(self, geometry: Geometry) -> str | None:
        if sum(size > 1 for size in geometry.kernel) < 2:
            return "has no kernel with several taps along two axes"
        return None

    def full(self, geometry: Geometry) -> tuple[int, ...]:
        height = geometry.kernel[0]
        return (min(geometry.group_inputs * height, geometry.group_outputs * (geometry.taps // height)),)

    def layout(self, geometry: Geometry, ranks: tuple[Any, ...]) -> list[Geometry]:
        g, (rank,) = geometry, ranks
        rest = tuple(range(1, len(g.kernel)))
        middle = rank * g.groups
        return [g.along((0,), g.inputs, middle, g.groups), g.along(rest, middle, g.outputs, g.groups)]

    def fit(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Tensor]:
        (rank,) = ranks
        groups, outputs, inputs, taps = kernel.shape
        height = geometry.kernel[0]
        width = taps // height
        left, right = matrix_factors(self.unfoldings(kernel, geometry, metric)[0], rank)
        first = left.reshape(groups, inputs, height, rank).permute(
            0, 3, 2, 1
        )  # (groups, rank, height, inputs)
        first = metric.unwhiten_inputs(first.flatten(1, 2)).reshape(groups, rank, height, inputs)
        first = first.transpose(2, 3)
        if metric.second is None:
            second = right.reshape(groups, rank, outputs, width).transpose(1, 2)
        else:
            eye = torch.eye(width, dtype=kernel.dtype)
            features = torch.einsum("grsi,jl->grjsil", first, eye)
            fitted = metric.regress(kernel, features.reshape(groups, rank * width, inputs, taps))
            second = fitted.reshape(groups, outputs, rank, width)
        return [first, second]

    def curve(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> Curve:
        return spectrum_curve(self.unfoldings(kernel, geometry, metric)[0])

    def unfoldings(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> list[Tensor]:
        white = metric.whiten_channels(kernel)
        groups, outputs, inputs, taps = white.shape
        height = geometry.kernel[0]
        split = white.reshape(groups, outputs, inputs, height, taps // height)
        return [split.permute(0, 2, 3, 1, 4).reshape(groups, inputs * height, -1)]
