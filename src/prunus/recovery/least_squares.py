"""Fit a layer's weights to targets from sums alone, with as much regularization as held-out data ask for."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from prunus.eigen import eigen
from prunus.gram import gram

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
        self.xx = self.xx + _shifted(gram(x.mT), rest, mean, rest, mean, x.shape[1])

    def without_targets(self) -> Moments:
        """The same inputs, to which `aim` adds targets."""
        return Moments(self.n, self.x, torch.zeros(()), self.xx, torch.zeros(()), torch.zeros(()))

    def aim(self, x: Tensor, t: Tensor) -> None:
        """Count targets in, of rows whose inputs are counted already."""
        self.tt = self.tt + t.double().square().sum(0)
        (x_mean, x_rest, x), (t_mean, t_rest, t) = _about_mean(x), _about_mean(t)
        self.t = self.t + t_rest + t.shape[1] * t_mean
        self.tx = self.tx + _shifted(t.mT @ x, t_rest, t_mean, x_rest, x_mean, t.shape[1])

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


def _shifted(
    products: Tensor, a_rest: Tensor, a_mean: Tensor, b_rest: Tensor, b_mean: Tensor, count: int
) -> Tensor:
    """Sums of products of rows, from those about means, of which `rest` is left; in float64."""
    left = torch.stack([a_rest + count * a_mean, a_mean], 2)
    return torch.baddbmm(products.double(), left, torch.stack([b_mean, b_rest], 1))


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
        self._basis: _Basis | None = None
        self._factors: dict[float, Tensor] = {}

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
            error = _error_of_bias(held, train.t / train.n)
            if error < best.after:
                best = Fit(
                    torch.zeros_like(train.tx), _all(train, held).t / (train.n + held.n), before, error
                )
        if self._basis is None:
            self._basis = _Basis(train, held, self.bias)
        chosen = None
        for ridge, error in zip(_RIDGES, self._basis.errors(train, held), strict=True):
            least = (
                best.after if chosen is None else best.after - _ROUNDING * before
            )  # else it is rounding that chooses
            if -_ROUNDING * before <= error < least:  # what is far below zero is no error but noise
                chosen, best = ridge, Fit(None, None, before, error, ridge)
        if chosen is None:
            return best
        every = _all(train, held)
        weight = self._weight(every, chosen)
        return Fit(weight, _bias(every, weight) if self.bias else None, before, best.after, chosen)

    def _weight(self, sums: Moments, ridge: float) -> Tensor:
        """W' = C_tx (C_xx + ridge I)^-1 for all rows."""
        if ridge not in self._factors:
            xx = sums.centered(self.bias)[0]
            factor, failed = torch.linalg.cholesky_ex(_stronger(xx, ridge))
            if bool(failed.any()):  # rounding has made eigenvalues negative
                values, vectors = eigen(xx)
                xx = (vectors * values.clamp(min=0)[:, None, :]) @ vectors.mT
                factor = torch.linalg.cholesky(_stronger(xx, ridge))
            self._factors[ridge] = factor
        tx = sums.centered(self.bias)[1]
        return torch.cholesky_solve(tx.mT, self._factors[ridge]).mT


class _Basis:
    """The eigenvectors of the inputs' second moments, in which each ridge only scales.

    There the squares of what a fit misses on held-out rows are a quadratic form of the scales, the same one for all ridges.

    Args:
        train, held: sums of the rows that are fitted, and of others.
        bias: whether there is a bias, which takes the means up.
    """

    def __init__(self, train: Moments, held: Moments, bias: bool) -> None:
        self._with_bias = bias
        values, self._vectors = eigen(train.centered(bias)[0])
        values = values.clamp(min=0)
        strength = torch.tensor(_RIDGES, dtype=values.dtype, device=values.device)[:, None, None]
        self._scales = 1 / (values + strength * values.mean(1, keepdim=True) + 1e-30)  # (ridges, groups, d)
        self._held = self._vectors.mT @ held.xx @ self._vectors
        self._x, self._held_x = (self._turned(each.x[:, None, :])[:, 0] for each in (train, held))

    def _turned(self, rows: Tensor) -> Tensor:
        return rows @ self._vectors

    def errors(self, train: Moments, held: Moments) -> list[float]:
        """Mean square that each ridge leaves missing on held-out rows."""
        n, scales = max(held.n, 1), self._scales
        fitted, wanted = self._turned(train.centered(self._with_bias)[1]), self._turned(held.tx)
        form = gram(fitted.mT) * self._held
        error = held.tt.sum() - 2 * (scales * (fitted * wanted).sum(1)).sum((1, 2))
        error = error + ((scales[:, :, None, :] @ form)[:, :, 0] * scales).sum((1, 2))
        if self._with_bias:
            sums, held_sums = (torch.einsum("god,rgd->rgo", fitted, scales * x) for x in (self._x, self._held_x))  # fmt: skip
            bias = (train.t - sums) / train.n
            error = error + (n * bias.square() - 2 * bias * (held.t - held_sums)).sum((1, 2))
        return (error / n).tolist()


def _stronger(xx: Tensor, ridge: float) -> Tensor:
    """Second moments with more on the diagonal, relative to its mean."""
    more = ridge * xx.diagonal(dim1=1, dim2=2).mean(1).clamp(min=0) + 1e-30
    return xx + more[:, None, None] * torch.eye(xx.shape[1], dtype=xx.dtype, device=xx.device)


def _all(train: Moments, held: Moments) -> Moments:
    return train + held if held is not train else train


def _bias(moments: Moments, weight: Tensor) -> Tensor:
    return (moments.t - (weight @ moments.x[:, :, None])[:, :, 0]) / moments.n


def _error_of_bias(held: Moments, bias: Tensor) -> float:
    """Mean square of `t - bias` over the held-out rows."""
    error = held.tt - 2 * bias * held.t + held.n * bias.square()
    return float(error.sum()) / max(held.n, 1)
