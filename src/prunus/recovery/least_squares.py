"""Fit a layer's weights to targets from sums alone, with as much regularization as held-out data ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.eigen import eigen

__all__ = ["Fit", "Fitter", "Moments", "fit"]

_ROUNDING = 1e-6
_RIDGES = tuple(10.0**e for e in (-6, -5, -4, -3, -2, -1, 0, 1))


@dataclass
class Moments:
    """Sums over rows, for each group of a grouped layer, in float64.

    `x` (rows, groups, d) are inputs, `t` (rows, groups, o) what is missing from the outputs.

    Attributes:
        n: number of rows.
        x, t: (groups, d), (groups, o) sums.
        xx: (groups, d, d).
        tx: (groups, o, d).
        tt: (groups, o).
    """

    n: int = 0
    x: Tensor = field(default_factory=lambda: torch.zeros(()))
    t: Tensor = field(default_factory=lambda: torch.zeros(()))
    xx: Tensor = field(default_factory=lambda: torch.zeros(()))
    tx: Tensor = field(default_factory=lambda: torch.zeros(()))
    tt: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, x: Tensor, t: Tensor) -> None:
        """Count rows in."""
        self.aim(x, t)
        mean, rest, x = _about_mean(x)
        self.n += x.shape[1]
        self.x = self.x + rest + x.shape[1] * mean
        self.xx = self.xx + _products(x, x, rest, mean, rest, mean)

    def without_targets(self) -> Moments:
        """The same inputs, to which `aim` adds targets."""
        return Moments(self.n, self.x, torch.zeros(()), self.xx, torch.zeros(()), torch.zeros(()))

    def aim(self, x: Tensor, t: Tensor) -> None:
        """Count targets in, of rows whose inputs are counted already."""
        self.tt = self.tt + t.double().square().sum(0)
        (x_mean, x_rest, x), (t_mean, t_rest, t) = _about_mean(x), _about_mean(t)
        self.t = self.t + t_rest + t.shape[1] * t_mean
        self.tx = self.tx + _products(t, x, t_rest, t_mean, x_rest, x_mean)

    def __add__(self, other: Moments) -> Moments:
        return Moments(
            self.n + other.n, self.x + other.x, self.t + other.t, self.xx + other.xx,
            self.tx + other.tx, self.tt + other.tt,
        )  # fmt: skip

    def centered(self, bias: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Means of x x^T, t x^T and t^2, about the means where a bias takes these up."""
        n = max(self.n, 1)
        xx, tx, tt = self.xx / n, self.tx / n, self.tt / n
        if not bias:
            return xx, tx, tt
        x, t = self.x / n, self.t / n
        return xx - x[:, :, None] * x[:, None, :], tx - t[:, :, None] * x[:, None, :], tt - t.square()


def _about_mean(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(groups, d) means, what their rounding leaves to the sums, and the (groups, rows, d) rows about them.

    Inputs that hardly vary about a large mean, as those of a saturated activation, would lose their variance in products of
    single precision.
    """
    mean = x.mean(0)  # any number near it would do
    x = x - mean
    return mean.double(), x.sum(0).double(), x.transpose(0, 1)


def _products(a: Tensor, b: Tensor, a_rest: Tensor, a_mean: Tensor, b_rest: Tensor, b_mean: Tensor) -> Tensor:
    """Sums of products of rows that were shifted by means, of which `rest` is left."""
    outer = a_rest[:, :, None] * b_mean[:, None, :] + a_mean[:, :, None] * b_rest[:, None, :]
    outer = outer + a.shape[1] * a_mean[:, :, None] * b_mean[:, None, :]
    return (a.transpose(1, 2) @ b).double() + outer


@dataclass(frozen=True)
class Fit:
    """A correction of weights.

    Attributes:
        weight: (groups, o, d) to be added to the weights, or None if nothing helps.
        bias: (groups, o) to be added to the bias; None without one.
        before, after: mean square of what is missing, on the held-out rows.
        ridge: regularization, relative to the mean square of an input; infinite where only the bias is corrected.
    """

    weight: Tensor | None
    bias: Tensor | None
    before: float
    after: float
    ridge: float = float("inf")


def fit(train: Moments, held: Moments, bias: bool) -> Fit:
    """The correction that leaves least missing on held-out rows; see `Fitter`."""
    return Fitter(bias).fit(train, held)


class Fitter:
    """Fits to different targets for the same inputs, of which it decomposes the second moments once.

    Args:
        bias: whether there is a bias.
    """

    def __init__(self, bias: bool) -> None:
        self.bias = bias
        self._spectra: dict[str, tuple[Tensor, Tensor]] = {}

    def fit(self, train: Moments, held: Moments) -> Fit:
        """The correction that leaves least missing on held-out rows, fitted in the end to all of them.

        Candidates are: none, the bias alone, and ridge regressions of different strength. For `t = W' x + b'` the solution is
        W' = C_tx (C_xx + ridge I)^-1 and b' = mean(t) - W' mean(x).

        Args:
            train: sums of the rows that are fitted.
            held: sums of other rows.
        """
        before = float(held.tt.sum()) / max(held.n, 1)
        best = Fit(None, None, before, before)
        if self.bias:
            error = _held_error(held, torch.zeros_like(train.tx), train.t / train.n)
            if error < best.after:
                best = Fit(
                    torch.zeros_like(train.tx), _all(train, held).t / (train.n + held.n), before, error
                )
        chosen = None
        for ridge in _RIDGES:
            weight = self._weight("train", train, ridge)
            offset = _bias(train, weight) if self.bias else None
            error = _held_error(held, weight, offset)
            if -_ROUNDING * before <= error < best.after:  # what is far below zero is no error but noise
                chosen, best = ridge, Fit(weight, offset, before, error, ridge)
        if chosen is None:
            return best
        every = _all(train, held)
        weight = self._weight("every", every, chosen)
        return Fit(weight, _bias(every, weight) if self.bias else None, before, best.after, chosen)

    def _weight(self, which: str, sums: Moments, ridge: float) -> Tensor:
        xx, tx, _ = sums.centered(self.bias)
        if which not in self._spectra:
            values, vectors = eigen(xx)
            self._spectra[which] = values.clamp(min=0), vectors
        values, vectors = self._spectra[which]
        strength = ridge * values.mean(1, keepdim=True) + 1e-30
        return ((tx @ vectors) / (values + strength)[:, None, :]) @ vectors.transpose(1, 2)


def _all(train: Moments, held: Moments) -> Moments:
    return train + held if held is not train else train


def _bias(moments: Moments, weight: Tensor) -> Tensor:
    return (moments.t - (weight @ moments.x[:, :, None])[:, :, 0]) / moments.n


def _held_error(held: Moments, weight: Tensor, bias: Tensor | None) -> float:
    """Mean square of `t - weight x - bias` over the held-out rows."""
    n = held.n
    error = held.tt - 2 * (weight * held.tx).sum(2) + ((weight @ held.xx) * weight).sum(2)
    if bias is not None:
        predicted = (weight @ held.x[:, :, None])[:, :, 0]
        error = error - 2 * bias * (held.t - predicted) + n * bias.square()
    return float(error.sum()) / max(n, 1)
