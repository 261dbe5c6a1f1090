"""How replaceable a filter is: its distance to all other filters of its layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.errors import ConfigError

_LARGE = 1 << 28  # multiply-accumulates from which float32 products are worth their care
_BLOCK = 512
_NEAR = (
    1e-2  # of the sum of two squared norms: below, float32 leaves less than four digits of a squared distance
)


@register("geometric_median")
@dataclass(frozen=True)
class GeometricMedian:
    r"""Sum of the distances of a unit's filters to the others of the same layer; those in the middle can be replaced.

    The score of unit $u$ is $s_u = \sum_m \sum_v \lVert W_m[u] - W_m[v] \rVert_2$ over the layers $m$ that make the group's
    channels, with the batch normalization that follows folded in. The least score is nearest to the geometric median.

    Needs no data. Takes (units²) memory for each layer. Near duplicates keep their small distances: where products in
    float32 would lose them, they are measured in float64.

    Attributes:
        norm_share: share of the units, from 0 to below 1, that are ranked by their norm and go first; distances are then
            taken among the others only (the published mix of both), whose scores are these plus the least of their norms.
            0: distances alone.

    Raises:
        ConfigError: `norm_share` is no such number.

    Example:
        >>> import torch
        >>> from prunus.criteria import GeometricMedian, GroupView, MemberView
        >>> filters = torch.tensor([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]])
        >>> GeometricMedian().score(GroupView("conv", 3, (MemberView("conv.weight", 0, True, filters),)))
        tensor([15., 10., 15.], dtype=torch.float64)

    References:
        He et al., Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration, CVPR 2019,
        arXiv:1811.00250.
    """

    norm_share: float = 0.0

    def __post_init__(self) -> None:
        share = self.norm_share
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share < 1:
            raise ConfigError(f"norm_share must be a fraction from 0 to below 1, got {share!r}")

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) sums of distances, >= 0."""
        layers = [m.weight for m in group.members if m.produces] or [m.weight for m in group.members]
        scores = torch.zeros(group.size, dtype=torch.float64)
        rest = torch.arange(group.size)
        first = min(round(self.norm_share * group.size), group.size - 1)
        if first:
            scores = sum((w.double().square().sum(1).cpu() for w in layers), start=scores).sqrt()
            order = scores.argsort(stable=True)
            rest = order[first:].sort().values
            scores[rest] = scores[rest].min()  # above the norms of those that go first
        for weight in layers:
            scores[rest] += distance_sums(weight[rest.to(weight.device)]).cpu()
        return scores


def distance_sums(filters: Tensor) -> Tensor:
    """(filters,) float64 sums of the Euclidean distances of every row of (filters, elements) to all rows."""
    rows = filters.double()
    rows = rows - rows.mean(0)  # what all share would only cost digits
    if len(rows) ** 2 * rows.shape[1] < _LARGE:
        return _distances(rows).sum(1)
    return _fast_sums(rows)


def _distances(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows).fill_diagonal_(0)


def _fast_sums(rows: Tensor) -> Tensor:
    """As above, by float32 products; pairs so close that these lose digits are measured again."""
    short = rows.float()
    norms = short.square().sum(1)
    sums = rows.new_zeros(len(rows))
    starts = range(0, len(rows), _BLOCK)
    for i, j in ((i, j) for i in starts for j in starts if i <= j):
        one, two = slice(i, i + _BLOCK), slice(j, j + _BLOCK)
        scale = norms[one, None] + norms[two]
        squares = torch.addmm(scale, short[one], short[two].T, alpha=-2)
        near = squares < scale.mul_(_NEAR)
        distances = squares.clamp_(min=0).sqrt_()
        if bool(near.any()):
            _measure_again(distances, near, rows[one], rows[two])
        if i == j:
            distances.fill_diagonal_(0)
        else:
            sums[two] += distances.sum(0, dtype=torch.float64)
        sums[one] += distances.sum(1, dtype=torch.float64)
    return sums


def _measure_again(distances: Tensor, near: Tensor, first: Tensor, second: Tensor) -> None:
    """Replace distances of near pairs, (len(first), len(second)), by those in float64."""
    a, b = near.nonzero(as_tuple=True)
    if len(a) > 8 * len(first):
        distances.copy_(torch.cdist(first, second))
        return
    distances[a, b] = (first[a] - second[b]).norm(dim=1).float()
