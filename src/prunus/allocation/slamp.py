"""Layer-adaptive magnitudes: what share of its layer's remaining energy a unit holds."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunus.errors import PlanError


def energies(scores: np.ndarray, criterion: Any, name: str) -> np.ndarray:
    """Scores raised to the power in which they add up over weights: norms of order 2 are squared, others as they are.

    Raises:
        PlanError: negative scores, which are no shares of anything.
    """
    if (scores < 0).any():
        raise PlanError(
            f"slamp needs scores of at least 0, and group {name!r} has negative ones: "
            "use layer_norm='mean', 'tss_norm', 'linear_scaling' or 'none'"
        )
    return scores ** getattr(criterion, "energy_power", 1)


def layer_adaptive(energy: np.ndarray) -> np.ndarray:
    r"""Each unit's share of the energy of those in its layer that are no weaker.

    With energies sorted ascending, $s_k = a_k / \sum_{l \ge k} a_l$. The order within the layer stays; the scale of a layer
    does not matter; the strongest scores 1, so that one ranking of the whole model empties no layer.

    Args:
        energy: (units,) of at least 0. Of equal ones, the first counts as the stronger.

    Returns:
        (units,) float64 in [0, 1].

    References:
        Lee et al., Layer-adaptive Sparsity for the Magnitude-based Pruning, ICLR 2021, arXiv:2010.07611 (on single
        weights); on filters also Pan et al., arXiv:2305.14403.
    """
    order = np.argsort(-energy, kind="stable")  # strongest first
    total = np.cumsum(energy[order])
    shares = np.divide(energy[order], total, out=np.zeros(len(energy)), where=total > 0)
    shares[:1] = 1.0
    scores = np.empty(len(energy))
    scores[order] = shares
    return scores
