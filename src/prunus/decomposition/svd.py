"""Two layers for one, by singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunus.decomposition.base import Curve, Method, register
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.eigen import eigen, eigenvalues
from prunus.errors import ConfigError

__all__ = ["SVD", "matrix_factors", "singular_values", "spectrum_curve"]


@register
@dataclass(frozen=True)
class SVD(Method):
    r"""$W = U S V^T$ cut at rank r: a layer to r channels, and one from there to the outputs.

    With moments, the singular values are those of $W L$ ($\Sigma = L L^T$), and what is cut off is the error at the
    output: no other pair of matrices of that rank comes closer (data-aware low rank as in DRONE and SVD-LLM). For kernels of
    several taps this holds for the order "spatial".

    Attributes:
        order: of a kernel with several taps, which layer has them: "spatial" the first, the second being pointwise;
            "pointwise" the second.
    """

    order: str = "spatial"
    name = "svd"

    def __post_init__(self) -> None:
        if self.order not in ("spatial", "pointwise"):
            raise ConfigError(f"SVD(order={self.order!r}): say 'spatial' or 'pointwise'")

    def refusal(self, geometry: Geometry) -> str | None:
        if min(geometry.group_inputs * geometry.taps, geometry.group_outputs) < 2:
            return "has one channel per group: there is nothing to factor"
        return None

    def full(self, geometry: Geometry) -> tuple[int, ...]:
        s, t, taps = geometry.group_inputs, geometry.group_outputs, geometry.taps
        return (min(s * taps, t),) if self._spatial(geometry) else (min(s, t * taps),)

    def layout(self, geometry: Geometry, ranks: tuple[Any, ...]) -> list[Geometry]:
        g, (rank,) = geometry, ranks
        middle, axes = rank * g.groups, tuple(range(len(g.kernel)))
        if self._spatial(g):
            return [g.along(axes, g.inputs, middle, g.groups), g.pointwise(middle, g.outputs, g.groups)]
        return [g.pointwise(g.inputs, middle, g.groups), g.along(axes, middle, g.outputs, g.groups)]

    def fit(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Tensor]:
        (rank,) = ranks
        if self._spatial(geometry):
            left, right = matrix_factors(metric.whiten(kernel).flatten(2), rank)
            return [metric.unwhiten(right.reshape(len(kernel), rank, *kernel.shape[2:])), left[..., None]]
        left, right = matrix_factors(self._columns(kernel, metric), rank)
        first = metric.unwhiten_inputs(left.mT)  # (groups, rank, inputs)
        return [first[..., None], _second(kernel, first, right, metric)]

    def curve(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> Curve:
        return spectrum_curve(self.unfoldings(kernel, geometry, metric)[0])

    def unfoldings(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> list[Tensor]:
        if self._spatial(geometry):
            return [metric.whiten(kernel).flatten(2)]
        return [self._columns(kernel, metric)]

    def _columns(self, kernel: Tensor, metric: Metric) -> Tensor:
        """(groups, inputs, outputs * taps) over whitened channels."""
        return metric.whiten_channels(kernel).transpose(1, 2).flatten(2)

    def _spatial(self, geometry: Geometry) -> bool:
        return self.order == "spatial" or geometry.taps == 1


def _second(kernel: Tensor, first: Tensor, right: Tensor, metric: Metric) -> Tensor:
    """(groups, outputs, rank, taps) of the second layer, refitted where moments of patches are known."""
    groups, outputs, _, taps = kernel.shape
    rank = first.shape[1]
    if metric.second is None:
        return right.reshape(groups, rank, outputs, taps).transpose(1, 2)
    eye = torch.eye(taps, dtype=kernel.dtype)
    features = torch.einsum("grs,kl->grksl", first, eye).reshape(groups, rank * taps, -1, taps)
    return metric.regress(kernel, features).reshape(groups, outputs, rank, taps)


def matrix_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(groups, rows, rank) and (groups, rank, columns) of the closest matrix of that rank, of balanced sizes.

    By the eigenvectors of the smaller Gram matrix, many times as fast as singular values: one factor is orthogonal, the other the
    matrix seen in its basis, so that at full rank their product is the matrix to rounding.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        right, left = matrix_factors(matrix.mT, rank)
        return left.mT, right.mT
    u = eigen(matrix @ matrix.mT)[1][..., :rank]
    seen = u.mT @ matrix
    root = seen.norm(dim=-1, keepdim=True).sqrt()
    return u * root.mT, seen / root.clamp(min=1e-150)


def singular_values(matrix: Tensor) -> Tensor:
    """(…, values), largest first, each to within 1e-8 of the largest."""
    small = matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix
    return eigenvalues(small).clamp(min=0).sqrt()


def spectrum_curve(matrix: Tensor) -> Curve:
    """What is lost at each rank of (groups, rows, columns): the singular values that are cut off."""
    squares = (singular_values(matrix) ** 2).sum(0)
    total = float(squares.sum())
    left = squares.flip(0).cumsum(0).flip(0)  # from each one on
    lost = torch.cat([left[1:], left.new_zeros(1)]) / (total or 1.0)
    return Curve(np.arange(1, len(squares) + 1)[:, None], lost.cpu().numpy())
