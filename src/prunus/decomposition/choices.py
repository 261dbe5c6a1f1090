"""What can be done to each layer, at which cost, and what it loses: the input of the allocation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from prunus.decomposition.base import Curve, Method
from prunus.decomposition.ranks import rounded
from prunus.decomposition.sites import Site

__all__ = ["Choices", "chain_costs", "choices_of", "pays"]


@dataclass(frozen=True, eq=False)
class Choices:
    """What can be done to one layer. The first entry leaves it alone.

    Attributes:
        path: of the layer.
        ranks: (choices, ranks); zeros for leaving it alone.
        lost: (choices,) share of the layer's output that is lost, from 0 to 1.
        params, macs: (choices,) costs; multiply-accumulates for one sample.
        bytes_each: of a parameter.
    """

    path: str
    ranks: np.ndarray
    lost: np.ndarray
    params: np.ndarray
    macs: np.ndarray
    bytes_each: int

    def cost(self, unit: str) -> np.ndarray:
        """Costs in the unit of a target."""
        if unit == "macs":
            return self.macs
        return self.params * (self.bytes_each if unit == "size_bytes" else 1)


def chain_costs(site: Site, method: Method, ranks: tuple[Any, ...], bias: bool) -> tuple[Any, Any]:
    """Parameters and multiply-accumulates of what replaces a layer, at ranks that may be arrays."""
    chain = method.layout(site.geometry, ranks)
    params = sum((g.weights for g in chain), site.geometry.outputs if bias else 0)
    return params, site.macs(chain)


def pays(site: Site, params: Any, macs: Any) -> Any:
    """Whether both parameters and multiply-accumulates fall."""
    return (params < site.params) & (macs < site.macs([site.geometry]))


def choices_of(
    site: Site, method: Method, curve: Curve, bias: bool, multiple_of: int, least: int | float
) -> Choices:
    """The choices of a layer that pay, of those that a curve offers, with ranks rounded up to multiples."""
    full = method.full(site.geometry)
    ranks, lost = curve.ranks, curve.lost
    if multiple_of > 1 or least != 1:
        floors = rounded((1,) * len(full), full, multiple_of, least)
        fits = np.all((ranks % multiple_of == 0) | (ranks == np.array(full)), 1)
        fits &= np.all(ranks >= np.array(floors), 1)
        if not fits.any():  # the curve skips such ranks: what is lost there is no more than at the next below
            up = np.array([rounded(tuple(int(r) for r in row), full, multiple_of, least) for row in ranks])
            ranks, fits = up, np.ones(len(up), bool)
        ranks, lost = ranks[fits], lost[fits]
    params, macs = chain_costs(site, method, tuple(ranks.T), bias)
    params, macs = np.broadcast_to(params, len(ranks)), np.broadcast_to(macs, len(ranks))
    better = pays(site, params, macs)
    own = site.macs([site.geometry])
    return Choices(
        site.path,
        np.concatenate([np.zeros((1, ranks.shape[1]), int), ranks[better]]),
        np.concatenate([[0.0], lost[better]]),
        np.concatenate([[float(site.params)], params[better]]),
        np.concatenate([[float(own)], macs[better]]),
        site.layer.weight.element_size(),
    )
