"""Ranks of a layer from the spectra of its kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prunus.decomposition.base import Method
from prunus.decomposition.evbmf import evbmf_rank
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.decomposition.svd import singular_values
from prunus.errors import ConfigError

__all__ = ["EVBMF", "Energy", "as_rule", "estimated", "rounded"]


@dataclass(frozen=True)
class EVBMF:
    """Ranks at which what is cut off looks like noise, in the kernel, or at the output where data is given.

    Attributes:
        calibration: from -1 to 1: this share of what would be removed stays; below 0, so much more goes. A rank of 32 out of 64
            becomes 38 at 0.2, and 26 at -0.2.
    """

    calibration: float = 0.0

    def __post_init__(self) -> None:
        value = self.calibration
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            raise ConfigError(f"EVBMF(calibration={value!r}): say a number from -1 to 1")

    def rank(self, matrix: Tensor) -> int:
        """Rank of one matrix."""
        full = min(matrix.shape)
        rows, columns = (int(matrix.any(axis).sum()) for axis in (1, 0))  # dead ones are no evidence
        kept = evbmf_rank(singular_values(matrix).cpu().numpy(), rows, columns)
        return min(max(kept + int((full - kept) * self.calibration), 1), full)

    def __str__(self) -> str:
        return f"evbmf({self.calibration:g})"


@dataclass(frozen=True)
class Energy:
    """The least ranks that keep a share of the squared singular values.

    Attributes:
        kept: above 0, up to 1.
    """

    kept: float = 0.95

    def __post_init__(self) -> None:
        value = self.kept
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ConfigError(f"Energy(kept={value!r}): say a number above 0, up to 1")

    def rank(self, matrix: Tensor) -> int:
        """Rank of one matrix."""
        squares = np.cumsum(singular_values(matrix).cpu().numpy() ** 2)
        if squares[-1] <= 0:
            return 1
        return int(np.searchsorted(squares, self.kept * squares[-1] * (1 - 1e-12))) + 1

    def __str__(self) -> str:
        return f"energy({self.kept:g})"


def as_rule(given: Any) -> EVBMF | Energy:
    """A rule itself, or the one of a name.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(given, EVBMF | Energy):
        return given
    named = {"evbmf": EVBMF, "vbmf": EVBMF, "energy": Energy}
    if isinstance(given, str) and given.lower() in named:
        return named[given.lower()]()
    raise ConfigError(
        f"ranks={given!r}: give EVBMF(), Energy(0.95), or ranks per layer such as {{'conv1': [8, 16]}}"
    )


def estimated(
    rule: EVBMF | Energy, method: Method, kernel: Tensor, geometry: Geometry, metric: Metric
) -> tuple[int, ...]:
    """Ranks by a rule: those of the most demanding group.

    Raises:
        ConfigError: the method's ranks are those of no matrix.
    """
    unfoldings = method.unfoldings(kernel, geometry, metric)
    if not unfoldings:
        raise ConfigError(
            f"{rule} says nothing about the rank of {method.name}: give ranks per layer, or a target"
        )
    return tuple(max(rule.rank(matrix) for matrix in groups) for groups in unfoldings)


def rounded(
    ranks: tuple[int, ...], full: tuple[int, ...], multiple_of: int, least: int | float
) -> tuple[int, ...]:
    """Ranks up to multiples, no less than a floor (a number, or a share of the full rank), no more than the full rank."""
    found = []
    for rank, most in zip(ranks, full, strict=True):
        floor = math.ceil(least * most) if isinstance(least, float) else least
        up = multiple_of * math.ceil(max(rank, floor, 1) / multiple_of)
        found.append(min(up, most))
    return tuple(found)
