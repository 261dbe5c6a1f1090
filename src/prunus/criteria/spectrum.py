"""Singular values of many small maps at once."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.eigen import eigenvalues

__all__ = ["as_matrices", "nuclear_norms", "ranks"]

_CHUNK = 1 << 22  # numbers that are worked on at a time


def as_matrices(maps: Tensor, tokens: str, center: bool = False) -> Tensor:
    """(positions, matrices, height, width) from activations of any number of axes.

    Args:
        maps: (positions, samples, *map). Maps of two axes are matrices; of three and more, each slice of the last two is one.
        tokens: what maps of one axis are: `"batch"`: the rows of one (samples, tokens) matrix; `"vector"`: a matrix each.
        center: subtract the mean of each map.
    """
    if maps.dim() == 2:
        return maps[..., None, None]
    if center:
        maps = maps - maps.mean(tuple(range(2, maps.dim())), keepdim=True)
    if maps.dim() == 3:
        return maps[:, None] if tokens == "batch" else maps[:, :, None]
    return maps.reshape(maps.shape[0], -1, *maps.shape[-2:]) if maps.dim() > 4 else maps


def nuclear_norms(matrices: Tensor) -> Tensor:
    """Sums of singular values of (..., height, width) matrices: (...), float64.

    They are square roots of the eigenvalues of the smaller Gram matrix, which is two to five times as fast as singular
    values. In float64, what squaring costs stays below 1e-6 of the norm.
    """
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    return torch.cat([_norms(part) for part in _parts(flat)]).reshape(matrices.shape[:-2])


def ranks(matrices: Tensor) -> Tensor:
    """Numbers of singular values above what rounding of the activations leaves: (...), float64."""
    flat = matrices.reshape(-1, *matrices.shape[-2:])
    eps = torch.finfo(matrices.dtype).eps * max(matrices.shape[-2:])
    found = []
    for part in _parts(flat):
        values = eigenvalues(_gram(part.double())).clamp(min=0)
        floor = values[:, :1] * max(eps * eps, 1e-13)  # the Gram matrix has the squares
        found.append((values > floor).sum(-1).double())
    return torch.cat(found).reshape(matrices.shape[:-2])


def _parts(flat: Tensor) -> tuple[Tensor, ...]:
    size = max(1, _CHUNK // max(flat.shape[-1] * flat.shape[-2], 1))
    return flat.split(size)


def _norms(matrices: Tensor) -> Tensor:
    short = min(matrices.shape[-2:])
    if short == 1:
        return torch.linalg.vector_norm(matrices.double(), dim=(-2, -1))
    gram = _gram(matrices.double())
    if short == 2:  # (a + b)² = a² + b² + 2ab
        determinant = (gram[:, 0, 0] * gram[:, 1, 1] - gram[:, 0, 1].square()).clamp_(min=0)
        return (gram[:, 0, 0] + gram[:, 1, 1] + 2 * determinant.sqrt()).sqrt()
    return eigenvalues(gram).clamp(min=0).sqrt_().sum(-1)


def _gram(matrices: Tensor) -> Tensor:
    wide = matrices.shape[-1] >= matrices.shape[-2]
    return matrices @ matrices.mT if wide else matrices.mT @ matrices
