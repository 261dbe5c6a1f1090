"""Canonical polyadic decomposition by alternating least squares whose components stay bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.eigen import eigen, singular

__all__ = ["Fitted", "als", "decomposed", "folded", "sliced"]

LARGEST = 5.0  # size of a component, relative to the kernel
_SWEEPS = 40
_TRIED = 2  # sweeps after which the better of two starts is known
# a sweep starts further on in the direction in which the last one has gone, by so many times that distance: at first, after a
# sweep that ended worse, and at most
_STEP, _BACK, _FARTHEST, _GROWTH = 1.0, 0.3, 1.5, 1.2
_WORSE = 3e-3  # relative growth of the error up to which a sweep that ended worse is gone on from: doing it again costs more
_TOLERANCE = 2e-4  # relative gain of the error in a sweep
_PENALTY, _LEAST = (
    1e-3,
    1e-6,
)  # on squared sizes of components, relative to the kernel's: at first, and at last


@dataclass(frozen=True, eq=False)
class Fitted:
    """A sum of rank-one tensors.

    Attributes:
        factors: (size, rank) for each axis; a component has the same length in each.
        error: relative to the tensor's length.
        largest: length of the largest component, relative to the tensor's.
    """

    factors: list[Tensor]
    error: float
    largest: float


def sliced(tensor: Tensor, shape: tuple[int, ...], rank: int) -> list[Tensor]:
    """A start that cannot degenerate: the largest singular triples of all slices at one position of the kernel.

    At full rank this is the tensor itself.

    Args:
        tensor: (outputs, inputs, taps).
        shape: of the taps; their product is taps.
        rank: number of components.
    """
    outputs, inputs, taps = tensor.shape
    turn = torch.eye(taps, dtype=tensor.dtype, device=tensor.device)
    if len(shape) == 1 and rank < min(outputs, inputs) * taps:
        flat = tensor.flatten(0, 1)
        turn = eigen(flat.T @ flat)[1]  # slices in the kernel's own basis
    u, s, vh = singular((tensor @ turn).permute(2, 0, 1))
    order = s.flatten().argsort(descending=True)[:rank]
    tap, triple = order // s.shape[1], order % s.shape[1]
    sizes = s[tap, triple]
    factors = [u[tap, :, triple].T, vh[tap, triple].T]
    if len(shape) == 1:
        factors.append(turn[:, tap])
    else:
        places = torch.unravel_index(tap, shape)
        factors += [torch.eye(n, dtype=tensor.dtype)[:, p].to(tensor.device) for n, p in zip(shape, places, strict=True)]  # fmt: skip
    missing = rank - len(order)
    if missing > 0:
        factors = [torch.nn.functional.pad(factor, (0, missing)) for factor in factors]
        sizes = torch.nn.functional.pad(sizes, (0, missing))
    return [factor * sizes ** (1 / len(factors)) for factor in factors]


def folded(tensor: Tensor, rank: int) -> list[Tensor]:
    """Another start: the largest singular triples of the outputs' unfolding, whose right vectors are matrices cut at their own.

    Args:
        tensor: (outputs, inputs, taps).
        rank: number of components.
    """
    u, s, vh = singular(tensor.flatten(1))
    left, sizes, right = singular(vh.reshape(-1, *tensor.shape[1:]))
    sizes = s[:, None] * sizes
    order = sizes.flatten().argsort(descending=True)[:rank]
    row, triple = order // sizes.shape[1], order % sizes.shape[1]
    factors = [u[:, row], left[row, :, triple].T, right[row, triple].T]
    return [factor * sizes[row, triple] ** (1 / 3) for factor in factors]


def decomposed(tensor: Tensor, shape: tuple[int, ...], rank: int) -> Fitted:
    """A sum of rank-one tensors from the better of two deterministic starts.

    Args:
        tensor: (outputs, inputs, taps).
        shape: of the taps.
        rank: number of components, less than that at which `sliced` is exact.
    """
    starts = [sliced(tensor, shape, rank)]
    if len(shape) == 1:
        other = folded(tensor, rank)
        starts += [other] if other[0].shape[1] == rank else []
    descents = [_Descent(start, tensor, shape) for start in starts]
    for descent in descents:
        descent.advance(_TRIED)
    best = min(descents, key=lambda each: each.best.error)
    return best.fitted(_SWEEPS)


def als(start: list[Tensor], tensor: Tensor, shape: tuple[int, ...], *, sweeps: int = _SWEEPS) -> Fitted:
    """Improve a sum of rank-one tensors.

    The squared sizes of the components are penalized: as all factors but the one that is solved for have length one, that is a ridge.
    The penalty falls from sweep to sweep, and rises again as soon as a component gets too large, as happens where
    a tensor is the limit of tensors of lower rank.

    Args:
        start: a factor (size, rank) for each axis.
        tensor: (outputs, inputs, taps).
        shape: of the taps.
        sweeps: at most so many.
    """
    return _Descent(start, tensor, shape).fitted(sweeps)


@dataclass(frozen=True, eq=False)
class _Swept:
    units: list[Tensor]  # factors of length one
    sizes: Tensor  # (rank,)
    error: float
    largest: float


class _Descent:
    """Sweeps from one start, which can be gone on with."""

    def __init__(self, start: list[Tensor], tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.length = float(torch.linalg.vector_norm(tensor))
        self._state = _State(tensor / (self.length or 1.0), shape)
        self._previous = [_unit(factor)[0] for factor in start]
        self._penalty, self._stalled, self._step, self._done = _PENALTY, 0, _STEP, 1
        self.best = self._state.sweep(self._previous, _PENALTY)

    def advance(self, sweeps: int) -> None:
        """Go on until there have been so many sweeps, or another gains nothing."""
        while (
            self._done < sweeps and not (self._stalled >= 3 and self._penalty == _LEAST) and self._stalled < 8
        ):
            self._once()
            self._done += 1

    def fitted(self, sweeps: int) -> Fitted:
        """What has been reached after so many sweeps, with components that are small enough."""
        if self.length == 0:
            return Fitted([torch.zeros_like(unit) for unit in self._previous], 0.0, 0.0)
        self.advance(sweeps)
        while self.best.largest > LARGEST:  # a large enough penalty makes sure of it
            self._penalty = 4 * self._penalty
            self.best = self._state.sweep(self.best.units, self._penalty)
        share = (self.best.sizes * self.length) ** (1 / len(self.best.units))
        return Fitted([unit * share for unit in self.best.units], self.best.error, self.best.largest)

    def _once(self) -> None:
        best = self.best
        bounded = best.largest <= LARGEST
        self._penalty = max(_LEAST, 0.5 * self._penalty) if bounded else 8 * self._penalty
        ahead = [best.units[0]]  # solved for first: its start does not matter
        ahead += [torch.lerp(then, now, 1 + self._step) for now, then in zip(best.units[1:], self._previous[1:], strict=True)]  # fmt: skip
        trial = self._state.sweep(ahead, self._penalty)
        if trial.error <= best.error or not bounded:
            self._step = min(self._step * _GROWTH, _FARTHEST)
        else:
            self._step = _BACK
            if trial.error > (1 + _WORSE) * best.error:
                trial = self._state.sweep(best.units, self._penalty)
        self._previous, self.best = best.units, trial
        slow = best.error - trial.error < _TOLERANCE * best.error
        self._stalled = self._stalled + 1 if slow and bounded else 0


class _State:
    """A tensor of length one, laid out for sweeps."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.outputs, self.inputs, self.taps = tensor.shape
        self.shape = shape
        self.flat = tensor.reshape(self.outputs, -1).contiguous()
        self._eye = torch.empty(0)

    def sweep(self, factors: list[Tensor], penalty: float) -> _Swept:
        """Solve for each factor in turn. All but the outputs' matter as a start, and their lengths do not."""
        units = [factors[0], *(_unit(factor)[0] for factor in factors[1:])]
        grams = [units[0], *(unit.T @ unit for unit in units[1:])]
        joined = self._joined(units[2:])  # (taps, rank)
        rank = joined.shape[1]
        if len(self._eye) != rank:
            self._eye = torch.eye(rank, dtype=joined.dtype, device=joined.device)
        pairs = (units[1][:, None] * joined).reshape(-1, rank)
        self._solve(self.flat @ pairs, units, grams, 0, penalty)
        seen = (units[0].T @ self.flat).reshape(rank, self.inputs, self.taps)
        right = torch.bmm(seen, joined.T[:, :, None])[..., 0].T
        sizes = self._solve(right, units, grams, 1, penalty)
        over_taps = torch.bmm(units[1].T[:, None], seen)[:, 0]  # (rank, taps)
        for axis in range(len(self.shape)):
            right = self._along(over_taps, units[2:], axis)
            sizes = self._solve(right, units, grams, 2 + axis, penalty)
        inner = (right * units[-1]).sum(0) @ sizes
        squares = sizes @ _product(grams) @ sizes
        error, largest = torch.stack([1 - 2 * inner + squares, sizes.max()]).tolist()
        return _Swept(units, sizes, math.sqrt(max(0.0, error)), largest)

    def _solve(
        self, right: Tensor, units: list[Tensor], grams: list[Tensor], mode: int, penalty: float
    ) -> Tensor:
        """Solve for one factor in place; returns the sizes of the components."""
        gram = _product(grams[:mode] + grams[mode + 1 :]).add_(self._eye, alpha=penalty)
        # positive definite by the penalty: there is nothing to check
        solved = torch.cholesky_solve(right.T, torch.linalg.cholesky_ex(gram).L).T
        units[mode], sizes = _unit(solved)
        grams[mode] = units[mode].T @ units[mode]
        return sizes

    def _joined(self, spatial: list[Tensor]) -> Tensor:
        joined = spatial[0]
        for factor in spatial[1:]:
            joined = (joined[:, None] * factor[None]).flatten(0, 1)
        return joined

    def _along(self, over_taps: Tensor, spatial: list[Tensor], axis: int) -> Tensor:
        """(size, rank): what is left along one axis of (rank, taps) when the others' factors are multiplied in."""
        if len(self.shape) == 1:
            return over_taps.T
        left = over_taps.reshape(-1, *self.shape)
        for other in reversed(range(len(self.shape))):
            if other != axis:
                weights = spatial[other].T.reshape(
                    -1, *(n if i == other else 1 for i, n in enumerate(self.shape))
                )
                left = (left * weights).sum(1 + other, keepdim=True)
        return left.reshape(len(over_taps), -1).T


def _product(grams: list[Tensor]) -> Tensor:
    product = grams[0] * grams[1] if len(grams) > 1 else grams[0].clone()
    for gram in grams[2:]:
        product = product * gram
    return product


def _unit(factor: Tensor) -> tuple[Tensor, Tensor]:
    length = torch.linalg.vector_norm(factor, dim=0)
    return factor / length.clamp(min=1e-30), length
