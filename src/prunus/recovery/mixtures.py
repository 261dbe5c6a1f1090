"""The channels of attention heads as mixtures: as many as stay, but of all that there were."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.eigen import eigen

__all__ = ["Mixture", "mixed"]


@dataclass(frozen=True)
class Mixture:
    """Fewer channels for each head, mixed from all of it.

    Attributes:
        made: (heads, r, d) mixtures of the channels.
        read: (heads, d, r) the channels, as nearly as the mixtures give them.
        before, after: what is lost by the channels that were chosen alone, and by the mixtures.
        scale: what would be lost with all.
    """

    made: Tensor
    read: Tensor
    before: float
    after: float
    scale: float


def mixed(moments: Tensor, power: Tensor, kept: Tensor) -> Mixture:
    """The mixtures of r channels from which all can be read with the least loss.

    With second moments C of the channels and G of what is lost with errors in them (gradients, say), the loss of reading them
    as R A x is tr(G (I - R A) C (I - R A)^T). With C^1/2 G C^1/2 = E L E^T, largest first, the best are A = L_r^-1 E_r^T C^1/2 G
    and R = C^1/2 E_r; what is lost are the other eigenvalues.

    Args:
        moments, power: (heads, d, d).
        kept: (heads, r) the channels that would stay as they are.
    """
    width = kept.shape[1]
    values, vectors = eigen(moments)
    root = (vectors * values.clamp(min=0).sqrt()[:, None, :]) @ vectors.mT
    found, vectors = eigen(root @ power @ root)
    found, best = found.clamp(min=0), root @ vectors[:, :, :width]
    size = found[:, :width].clamp(min=1e-12 * max(float(found.max()), 1e-300))
    gone = _others(kept, moments.shape[1])
    lost = (_block(power, gone) * _block(moments, gone)).sum()
    return Mixture(
        best.mT @ power / size[:, :, None],
        best,
        float(lost),
        float(found[:, width:].sum()),
        float(found.sum()),
    )


def _others(kept: Tensor, size: int) -> Tensor:
    """(heads, size - r) what is not kept."""
    stays = torch.zeros(len(kept), size, dtype=torch.bool, device=kept.device).scatter_(1, kept, True)
    return (~stays).nonzero()[:, 1].reshape(len(kept), -1)


def _block(matrix: Tensor, chosen: Tensor) -> Tensor:
    """(heads, n, n) rows and columns that are chosen for each head."""
    at = torch.arange(len(matrix), device=matrix.device)[:, None, None]
    return matrix[at, chosen[:, :, None], chosen[:, None, :]]
