"""Give attention logits back what they lose with the width of queries and keys, by least squares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.eigen import eigen
from prunus.recovery.attention import Attention, Queries, queries_of, seen_keys
from prunus.recovery.layers import Layer
from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Both, Pair
from prunus.recovery.rotary import Turning, turning_queries
from prunus.recovery.statistics import like
from prunus.surgery.placement import module_path

__all__ = ["Products", "fit_logits", "path_of", "repair_attention", "repair_logits"]

_SAMPLES = 192  # each gives as many equations as it has pairs of tokens
_RIDGES = (1e-5, 1e-3, 1e-1)
_ITERATIONS, _ROUGHLY = 60, 1e-4  # roughly is enough to choose between ridges


@dataclass(frozen=True)
class Products:
    """What the least squares need of each sample and head, in float64.

    With Q', K' the queries and keys that are left, Q, K the original ones (tokens, width), and keys taken about their mean, as a
    softmax does not see what all logits of a query have in common:

    Attributes:
        qq: (samples, heads, d, d) Q'^T Q'; with a bias, Q' has a last column of ones.
        kk: (samples, heads, e, e) K'^T K'.
        wanted: (samples, heads, d, e) Q'^T Q K^T K'.
        square: (samples, heads) sum of squares of Q K^T.
    """

    qq: Tensor
    kk: Tensor
    wanted: Tensor
    square: Tensor

    @staticmethod
    def of(q: Tensor, k: Tensor, q_was: Tensor, k_was: Tensor, weights: Tensor, bias: bool) -> Products:
        """From (samples, heads, tokens, width) queries and keys, and (samples, tokens) how much each key counts."""
        q, k, q_was, k_was = (x.double() for x in (q, k, q_was, k_was))
        k, k_was = _about_mean(k, weights), _about_mean(k_was, weights)
        if bias:
            q = torch.cat([q, q.new_ones(*q.shape[:-1], 1)], -1)
        wanted = (q.mT @ q_was) @ (k_was.mT @ k)
        square = ((q_was.mT @ q_was) * (k_was.mT @ k_was)).sum((-1, -2))
        return Products(q.mT @ q, k.mT @ k, wanted, square)

    @staticmethod
    def joined(parts: list[Products]) -> Products:
        """Of the samples of all parts."""
        names = ("qq", "kk", "wanted", "square")
        return Products(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def apply(self, m: Tensor) -> Tensor:
        """(heads, d, e) sum over samples of Q'^T Q' M K'^T K', as two products of large matrices for each head."""
        samples, heads, d, e = self.wanted.shape
        turned = (self._qq @ m).reshape(heads, samples, d, e)
        return turned.transpose(1, 2).reshape(heads, d, samples * e) @ self._kk

    @cached_property
    def _qq(self) -> Tensor:
        return self.qq.transpose(0, 1).flatten(1, 2)  # (heads, samples d, d)

    @cached_property
    def _kk(self) -> Tensor:
        return self.kk.transpose(0, 1).flatten(1, 2)  # (heads, samples e, e)

    def error(self, m: Tensor) -> float:
        """Sum of squares of Q' M K'^T - Q K^T."""
        return float((m * self.apply(m)).sum() - 2 * (m * self.wanted.sum(0)).sum() + self.square.sum())


def _about_mean(k: Tensor, weights: Tensor) -> Tensor:
    w = weights.double()[:, None, :, None]
    mean = (w * k).sum(2, keepdim=True) / w.sum(2, keepdim=True).clamp(min=1e-30)
    return w.sqrt() * (k - mean)


def fit_logits(
    products: Products,
    start: Tensor,
    ridge: float,
    tolerance: float = 1e-10,
    nearest: Callable[[Tensor], Tensor] = lambda m: m,
) -> Tensor:
    """(heads, d, e) M that minimizes |Q' M K'^T - Q K^T|^2 + r |M - start|^2 over all samples.

    Solves the normal equations, sum Q'^T Q' M K'^T K' + r M = sum Q'^T Q K^T K' + r start, by conjugate gradients; for one
    sample without r that is (Q'^T Q')^-1 Q'^T Q K^T K' (K'^T K')^-1. Means over samples precondition it.

    Args:
        products: sums of each sample.
        start: (heads, d, e).
        ridge: r in units of the mean eigenvalue.
        tolerance: at which the residual is small enough, relative to the right side.
        nearest: orthogonal projection onto the matrices that are allowed, among them `start`.
    """
    count = len(products.qq)
    left, right = products.qq.mean(0), products.kk.mean(0)
    strength = ridge * count * _mean_of(left) * _mean_of(right)

    def applied(m: Tensor) -> Tensor:
        return nearest(products.apply(m) + strength * m)

    (l_values, l_vectors), (r_values, r_vectors) = eigen(left), eigen(right)
    products_of_values = l_values.clamp(min=0)[:, :, None] * r_values.clamp(min=0)[:, None, :]
    divisor = count * products_of_values + strength
    divisor = divisor + 1e-12 * divisor.amax((1, 2), keepdim=True)  # some of it may be zero without r

    def eased(x: Tensor) -> Tensor:
        return nearest(l_vectors @ ((l_vectors.mT @ x @ r_vectors) / divisor) @ r_vectors.mT)

    m = start.clone()
    right_side = nearest(products.wanted.sum(0))
    residual = right_side - nearest(products.apply(start))
    goal = tolerance * _dot(right_side, right_side).sqrt()
    step = eased(residual)
    norm = _dot(residual, step)
    for _ in range(_ITERATIONS):
        if bool((_dot(residual, residual).sqrt() <= goal).all()):
            break
        turned = applied(step)
        length = norm / _dot(step, turned).clamp(min=1e-300)
        m = m + length * step
        residual = residual - length * turned
        better = eased(residual)
        following = _dot(residual, better)
        step = better + following / norm.clamp(min=1e-300) * step
        norm = following
    return m


def _mean_of(matrix: Tensor) -> Tensor:
    return matrix.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-30)[:, None, None]


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((-1, -2), keepdim=True)


def path_of(small: Captured, weight: str) -> str:
    """What the layer with a tensor is called."""
    return small.names[weight].rpartition(".")[0]


def repair_attention(
    pair: Pair, small: Captured, layers: dict[fx.Node, Layer], now: Attention, was: Attention
) -> tuple[str, Repair | None]:
    """Repair the logits of an attention, if its queries come straight from a layer.

    Returns:
        What the layer is called, with the reason if it cannot be repaired; and what was done.
    """
    queries = queries_of(now.query, layers)
    turning = None if queries else _turning(pair, small, layers, now)
    queries = turning.queries if turning else queries
    if queries is None:
        return (
            f"{module_path(now.node)} (queries and keys: something else than a layer makes them as they meet)",
            None,
        )
    path = path_of(small, queries.layer.weight)
    repair = repair_logits(pair, now, was, queries, path, turning)
    return path if repair else f"{path} (queries and keys)", repair


def _turning(pair: Pair, small: Captured, layers: dict[fx.Node, Layer], now: Attention) -> Turning | None:
    both = next(iter(pair.at(now.node, past=False)))
    return turning_queries(small, now.query, pair.now(now.query, both), layers, pair.leaves)


def repair_logits(
    pair: Pair, now: Attention, was: Attention, queries: Queries, path: str, turning: Turning | None = None
) -> Repair | None:
    """Fold the matrix that brings the logits nearest to the original's into the layer that makes the queries.

    Args:
        pair: both networks.
        now, was: the attention in the cut network and in the original.
        queries: where those of the cut network come from.
        path: what that layer is called.
        turning: how they turn between the layer and the product with the keys: the matrix has to commute with that.

    Returns:
        What was done; None where nothing helps on held-out batches, or the heads do not match.
    """
    parts: tuple[list[Products], list[Products]] = ([], [])
    samples = -(-_SAMPLES // pair.count)
    offset = queries.layer.bias_now() is not None and turning is None  # a constant would turn, too
    nearest = turning.nearest if turning else lambda m: m
    for both in pair.at(now.node, past=False):
        found = _products(pair, now, was, both, samples, offset)
        if found is None:
            return None
        parts[both.held].append(found)
    train = Products.joined(parts[0])
    held = Products.joined(parts[1]) if parts[1] else train
    heads, d, e = train.wanted.shape[1:]
    start = torch.eye(d, e, dtype=torch.float64, device=train.qq.device).expand(heads, d, e)
    before, chosen, least = held.error(start), None, held.error(start)
    for ridge in _RIDGES:
        error = held.error(fit_logits(train, start, ridge, _ROUGHLY, nearest))
        if error < least:
            chosen, least = ridge, error
    if chosen is None:
        return None
    every = Products.joined([train, held]) if held is not train else train
    m = fit_logits(every, start, chosen, nearest=nearest)
    _fold(pair, queries, m)
    pair.change(now.query, lambda q: _turned(q, m))
    scale = max(float(held.square.sum()), 1e-30)
    return Repair(path, "logits", before / scale, least / scale, chosen)


def _products(
    pair: Pair, now: Attention, was: Attention, both: Both, samples: int, bias: bool
) -> Products | None:
    q, k = pair.now(now.query, both), pair.now(now.key, both)
    q_was, k_was = (pair.kept_heads(n.name, both) for n in (was.query, was.key))
    if q_was is None or k_was is None:
        return None
    k, k_was = (x.mT if attention.key_is_turned else x for x, attention in ((k, now), (k_was, was)))
    q, k, q_was, k_was = (x[:samples] for x in (q, k, q_was, k_was))
    if q.shape[:3] != q_was.shape[:3] or k.shape[:3] != k_was.shape[:3] or q.shape[1] % k.shape[1]:
        return None
    if k.shape[1] < q.shape[1]:  # several heads of the queries share one of the keys
        k, k_was = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, k_was))
    weights = seen_keys(now, None if now.mask is None else pair.now(now.mask, both), k)
    return Products.of(q, k, q_was * (was.scale / now.scale), k_was, weights, bias)


def _fold(pair: Pair, queries: Queries, m: Tensor) -> None:
    """W_Q <- M^T W_Q for each head, and the bias likewise."""
    layer = queries.layer
    weight = pair.tensors[layer.weight]
    new, width = weight.detach().double().clone(), queries.rows.shape[1]
    rows = queries.rows.to(weight.device)
    square = m[:, :width].mT
    new[rows] = torch.einsum("hij,hj...->hi...", square, new[rows])
    pair.tensors[layer.weight] = like(weight, new)
    name = layer.bias_now()
    if name is not None:
        bias = pair.tensors[name]
        offset = bias.detach().double().clone()
        offset[rows] = torch.einsum("hij,hj->hi", square, offset[rows])
        if m.shape[1] > width:
            offset[rows] += m[:, width] / queries.factor
        pair.tensors[name] = like(bias, offset)


def _turned(q: Tensor, m: Tensor) -> Tensor:
    """Queries as the changed layer would have made them."""
    m, width = m.to(q), q.shape[-1]
    q = q @ m[:, :width]
    return q + m[:, width, None] if m.shape[1] > width else q
