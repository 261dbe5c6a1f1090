"""What is lost where fewer channels of a head are mixed from all of them."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.criteria.moments import Sums, shrunk
from prunus.eigen import eigen, eigenvalues
from prunus.evidence.probe import row_weights
from prunus.gram import gram

__all__ = ["mixture_errors", "weighed_moments"]


def weighed_moments(x: Tensor, gradient: Tensor) -> Tensor:
    """(positions, positions + 3) products, sum, weight and squared weight of (positions, samples, *map) activations.

    Each row counts as much as the outputs depend on it. In float64.
    """
    flat = x.flatten(1).float()
    weights = row_weights(gradient.flatten(1).float().mT)
    total = (flat * weights).sum(1)
    found = torch.empty(len(flat), len(flat) + 3, dtype=torch.float64, device=x.device)
    found[:, :-3] = gram(flat * weights.sqrt())
    found[:, -3], found[:, -2] = total, weights.sum(dtype=torch.float64)
    found[:, -1] = weights.double().square().sum()
    return found


def mixture_errors(
    rows: Tensor, weighed: dict[str, Tensor], felt: dict[str, Tensor], samples: int
) -> Tensor | None:
    """(rows, units per row) what each further channel costs that a row loses, least first; None where too little is known.

    With second moments C of a row's channels and G of the gradients there, the best mixtures of all but n channels lose the n
    least eigenvalues of C^1/2 G C^1/2. Queries count about zero, as no offset can stand for their mean.

    Args:
        rows: (rows, units per row) units.
        weighed: layer -> what `weighed_moments` has summed, per sample.
        felt: layer -> second moments of the gradients.
        samples: how many the sums are means of.
    """
    layer = next((name for name in weighed if not name.endswith(":1")), "")
    if layer not in felt or weighed[layer].dim() != 2:
        return None
    sums, gradients = weighed[layer], Sums(felt[layer])
    if len(sums) != sums.shape[1] - 3 or not gradients.together or gradients.width > 1:
        return None
    count, squared = float(sums[0, -2]), float(sums[0, -1])
    if not squared > 0:  # the outputs depend on none of it
        return None
    moments = sums[:, :-3] / count
    if not layer.endswith(":0"):
        mean = sums[:, -3] / count
        moments = moments - mean[:, None] * mean[None, :]
    moments = shrunk((moments + moments.T) / 2, samples * count**2 / squared)
    power = gradients.gram / gradients.count[:, None]
    moments, power = (each[rows[:, :, None], rows[:, None, :]] for each in (moments, power))
    values, vectors = eigen(moments)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :]
    return eigenvalues(root.mT @ power @ root).clamp(min=0).flip(1)
