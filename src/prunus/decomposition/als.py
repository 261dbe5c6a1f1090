"""Canonical polyadic decomposition by alternating least squares whose components stay bounded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.decomposition.eigen import eigen, one_thread

__all__ = ["Fitted", "als", "decomposed", "folded", "sliced"]

LARGEST = 5.0  # size of a component, relative to the kernel
_SWEEPS = 50
_TRIED = 6  # sweeps after which the better of two starts is known
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
    with one_thread():
        u, s, vh = torch.linalg.svd((tensor @ turn).permute(2, 0, 1), full_matrices=False)
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
    with one_thread():
        u, s, vh = torch.linalg.svd(tensor.flatten(1), full_matrices=False)
        left, sizes, right = torch.linalg.svd(vh.reshape(-1, *tensor.shape[1:]), full_matrices=False)
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
    if len(starts) == 1:
        return als(starts[0], tensor, shape)
    tried = [als(start, tensor, shape, sweeps=_TRIED) for start in starts]
    best = min(tried, key=lambda each: each.error)
    return als(best.factors, tensor, shape)


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
    length = float(tensor.norm())
    if length == 0:
        return Fitted([torch.zeros_like(factor) for factor in start], 0.0, 0.0)
    state = _State(tensor / length, shape)
    factors = [_unit(factor)[0] for factor in start]
    best = state.sweep(factors, _PENALTY)
    penalty, previous, stalled, step = _PENALTY, factors, 0, 0.3
    for _ in range(sweeps - 1):
        penalty = max(_LEAST, 0.5 * penalty) if best.largest <= LARGEST else 8 * penalty
        ahead = [now + step * (now - then) for now, then in zip(best.units, previous, strict=True)]
        trial = state.sweep(ahead, penalty)
        if trial.error > best.error and best.largest <= LARGEST:
            trial, step = state.sweep(best.units, penalty), 0.3  # the step was too long
        else:
            step = min(step * 1.2, 1.5)
        gain = best.error - trial.error
        previous, best = best.units, trial
        stalled = stalled + 1 if gain < _TOLERANCE * best.error and best.largest <= LARGEST else 0
        if (stalled >= 3 and penalty == _LEAST) or stalled >= 8:
            break
    if best.largest > LARGEST:
        best = _shortened(state, best, penalty)
    share = (best.sizes * length) ** (1 / len(best.units))
    return Fitted([unit * share for unit in best.units], best.error, best.largest)


def _shortened(state: _State, best: _Swept, penalty: float) -> _Swept:
    """Sweeps under a rising penalty until all components are small enough, which a large one ensures."""
    while best.largest > LARGEST:
        penalty = 4 * penalty
        best = state.sweep(best.units, penalty)
    return best


@dataclass(frozen=True, eq=False)
class _Swept:
    units: list[Tensor]  # factors of length one
    sizes: Tensor  # (rank,)
    error: float
    largest: float


class _State:
    """A tensor of length one, laid out for sweeps."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        self.outputs, self.inputs, self.taps = tensor.shape
        self.shape = shape
        self.flat = tensor.reshape(self.outputs, -1).contiguous()

    def sweep(self, factors: list[Tensor], penalty: float) -> _Swept:
        """Solve for each factor in turn. All but the outputs' matter as a start."""
        units = [_unit(factor)[0] for factor in factors]
        grams = [unit.T @ unit for unit in units]
        joined = self._joined(units[2:])  # (taps, rank)
        rank = joined.shape[1]
        pairs = (units[1][:, None] * joined[None]).reshape(-1, rank)
        _ = self._solved(self.flat @ pairs, units, grams, 0, penalty)
        seen = (units[0].T @ self.flat).reshape(rank, self.inputs, self.taps)
        right = torch.bmm(seen, joined.T[:, :, None])[..., 0].T
        sizes = self._solved(right, units, grams, 1, penalty)
        over_taps = torch.bmm(units[1].T[:, None], seen)[:, 0]  # (rank, taps)
        right = torch.empty(0)
        for axis in range(len(self.shape)):
            right = self._along(over_taps, units[2:], axis)
            sizes = self._solved(right, units, grams, 2 + axis, penalty)
        inner = float((right * units[-1]).sum(0) @ sizes)
        squares = float(sizes @ _product(grams) @ sizes)
        error = math.sqrt(max(0.0, 1 - 2 * inner + squares))
        return _Swept(units, sizes, error, float(sizes.max()))

    def _solved(
        self, right: Tensor, units: list[Tensor], grams: list[Tensor], mode: int, penalty: float
    ) -> Tensor:
        """Solve for one factor in place; returns the sizes of the components."""
        gram = _product(grams[:mode] + grams[mode + 1 :])
        gram.diagonal().add_(penalty)
        solved = torch.cholesky_solve(right.T, torch.linalg.cholesky(gram)).T
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
    length = factor.norm(dim=0)
    return factor / length.clamp(min=1e-30), length
