"""Attention scores that are kept, and filters that repeat others."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, chosen_from, register
from prunus.errors import ConfigError
from prunus.evidence import Need


@register("snp")
@dataclass(frozen=True)
class SNP:
    r"""Structured neuron-level pruning: query and key pairs by the attention scores that they keep, all others by redundancy.

    **Queries and keys**, and whatever else two activations multiply in: with the scores of a head
    $A = Q K^\top = \sum_j \sigma_j u_j v_j^\top$, pair $i$ scores
    $s_i = \sum_{j \le \gamma} \left| \cos(u_j v_j^\top, q_i k_i^\top) \right|$, averaged over samples. From the QR
    decompositions of $Q$ and $K$ this needs no matrix of scores. Pairs that can only leave together (the halves of a
    rotary pair) are scored as one sum of products, and keys that several heads of queries share as the sum over these.

    **All others** (values, feed-forward layers): $s_u = \sum_v \left(1 - \lvert\cos(W[u], W[v])\rvert\right)$ over all filters
    $v$ of the layer, of all heads together. A filter that resembles many others is redundant. Where several layers make the
    same channels, as along a residual stream, the scores of each are divided by their sum and averaged, so that one set of
    channels leaves everywhere.

    Needs data where two activations are multiplied: 64 samples as published, no labels. None elsewhere.

    Cost: one forward pass; for each head and sample two QR decompositions of (tokens, width of a head) and a singular value
    decomposition of (width, width). Redundancy takes (filters²) memory.

    Caution:
        Cosines do not see magnitudes: a tiny pair that points along the first component outranks a large useful one.
        `mode="energy"` does: $s_i = \lvert\langle \sum_{j \le \gamma} \sigma_j u_j v_j^\top, q_i k_i^\top \rangle\rvert$.
        As published: `Options(policy="average", layer_norm="tss_norm", group_policy="none")`.

    Attributes:
        mode: `"cosine"`, as published, or `"energy"`.
        gamma: how many components count: as a whole number, so many; as a fraction, as many as hold that share of the
            squares of the singular values. The published number is not known.

    Raises:
        ConfigError: another mode, or a gamma that is neither.

    Example:
        >>> import torch, prunus
        >>> from prunus.criteria import GroupView, MemberView, SNP
        >>> filters = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]])  # the first two point the same way
        >>> SNP().score(GroupView("values", 3, (MemberView("v.weight", 0, True, filters),)))
        tensor([1., 1., 2.], dtype=torch.float64)

    References:
        Shim, Yun and Choi, SNP: Structured Neuron-level Pruning to Preserve Attention Scores, ECCV 2024, arXiv:2404.11630.
    """

    mode: str = "cosine"
    gamma: float | int = 0.9

    def __post_init__(self) -> None:
        chosen_from(self, mode=("cosine", "energy"))
        gamma = self.gamma
        is_count = isinstance(gamma, int) and not isinstance(gamma, bool) and gamma >= 1
        if not is_count and not (isinstance(gamma, float) and 0 < gamma <= 1):
            raise ConfigError(
                f"gamma must be a number of components (int) or a share of energy in (0, 1], got {gamma!r}"
            )

    @property
    def needs(self) -> tuple[Need, ...]:
        """Scores of pairs in products of two activations."""
        return (Need(self._key, "product", partial(pair_scores, mode=self.mode, gamma=self.gamma)),)

    @property
    def _key(self) -> str:
        return f"snp:{self.mode}:{self.gamma!r}"

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) scores, >= 0.

        Raises:
            ConfigError: a group of pairs, without data.
        """
        pairs = group.seen(self._key, required=group.multiplied)
        if pairs:
            return torch.stack(list(pairs.values())).sum(0)
        layers: dict[str, list[Tensor]] = {}
        for member in group.members:
            if member.produces:
                layers.setdefault(member.parameter.rpartition(".")[0], []).append(member.weight)
        filters = [torch.cat(weights, 1) for weights in layers.values()] or [m.weight for m in group.members]
        found = [dissimilarity(weight) for weight in filters]
        if len(found) == 1:
            return found[0]
        return sum(((s / s.sum().clamp(min=1e-300) for s in found)), start=torch.zeros(group.size)) / len(
            found
        )


def dissimilarity(filters: Tensor) -> Tensor:
    """(filters,) float64 sums of 1 - |cos| of every row of (filters, elements) with all rows."""
    rows = filters.float().cpu()
    norms = rows.norm(dim=1, keepdim=True)
    rows = torch.where(norms > 0, rows / norms.clamp(min=1e-30), 0)
    return (len(rows) - (rows @ rows.T).abs().double().sum(1)).clamp(min=0)


def pair_scores(queries: Tensor, keys: Tensor, units: Tensor, *, mode: str, gamma: float) -> Tensor:
    """(units,) scores of query and key pairs, summed over samples and heads.

    Args:
        queries: (samples, heads, n, width).
        keys: (samples, heads, m, width).
        units: (heads, width) numbers of units; equal ones in a row are one pair. -1 for none.
        mode: see `SNP`.
        gamma: see `SNP`.
    """
    left, right = (torch.linalg.qr(x.double(), mode="r").R for x in (queries, keys))
    u, s, vh = torch.linalg.svd(left @ right.mT, full_matrices=False)
    energy = s.square()
    before = energy.cumsum(-1) - energy
    counted = torch.arange(s.shape[-1], device=s.device).expand(s.shape) < gamma
    if isinstance(gamma, float):
        counted = before < gamma * energy.sum(-1, keepdim=True) * (1 - 1e-12)
    products = (u.mT @ left) * (vh @ right)  # (samples, heads, components, width)
    local, count = _local(units)
    index = local.to(s.device).expand(products.shape[0], *local.shape)
    inner = _joined(products, index, count, -1)
    if mode == "energy":
        scores = (inner * (s * counted).unsqueeze(-1)).sum(-2).abs()
    else:
        grams = (left.mT @ left) * (right.mT @ right)  # (samples, heads, width, width)
        joined = _joined(_joined(grams, index, count, -1), index, count, -2)
        norms = joined.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        total = (inner.abs() * counted.unsqueeze(-1)).sum(-2)
        floor = norms.amax(-1, keepdim=True) * 1e-12
        scores = torch.where(norms > floor, total / norms.clamp(min=1e-300), 0)
    return _by_unit(scores.sum(0).cpu(), units, local)


def _local(units: Tensor) -> tuple[Tensor, int]:
    """(heads, width) numbers of units counted within each row, and the greatest count."""
    rows = [torch.unique(row, return_inverse=True)[1] for row in units]
    local = torch.stack(rows)
    return local, int(local.max()) + 1


def _joined(values: Tensor, index: Tensor, count: int, axis: int) -> Tensor:
    """Sums of (samples, heads, a, b) over equal numbers of (samples, heads, width) along an axis."""
    shape = list(values.shape)
    shape[axis] = count
    where = index.unsqueeze(-2 if axis == -1 else -1).expand(values.shape)
    return values.new_zeros(shape).scatter_add_(axis, where, values)


def _by_unit(scores: Tensor, units: Tensor, local: Tensor) -> Tensor:
    """(heads, local) scores by unit."""
    found = scores.new_zeros(int(units.max()) + 1)
    for row, names, numbers in zip(scores, units, local, strict=True):
        first = torch.zeros(int(numbers.max()) + 1, dtype=names.dtype)
        first[numbers] = names
        used = first >= 0
        found.index_add_(0, first[used], row[: len(first)][used])
    return found
