"""How many independent patterns the feature maps of a channel have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.criteria.spectrum import as_matrices, ranks
from prunus.evidence import Need


@register("hrank")
@dataclass(frozen=True)
class HRank:
    r"""Rank of the feature maps that a unit makes, after activation.

    The score of unit $u$ is $s_u = \frac{1}{N} \sum_n \mathrm{rank}(F_{n,u})$ over the $N$ samples, and over all places where
    the unit's maps are read. Of tokens, the matrix (samples, tokens) of a batch counts.

    Needs data: a few hundred samples, no labels.

    Cost: as `NuclearNorm`.

    Caution:
        Ranks of small maps hardly differ, and any noise gives a map full rank; `NuclearNorm` weighs singular values
        by their size instead.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()
        >>> with torch.no_grad():
        ...     _ = net[0].weight[2].zero_(), net[0].bias[2].fill_(9)  # constant maps have rank 1
        >>> images = torch.randn(16, 3, 8, 8)
        >>> prunus.compress(net, images[:2], method="hrank", ratio={"0": 0.25}, data=[images]).plan.keep
        {'0': (0, 1, 3)}

    References:
        Lin et al., HRank: Filter Pruning using High-Rank Feature Map, CVPR 2020, arXiv:2002.10179.
    """

    @property
    def needs(self) -> tuple[Need, ...]:
        """Ranks of feature maps."""
        return (Need("hrank", "used", _measured),)

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) mean ranks, >= 0.

        Raises:
            ConfigError: without data.
        """
        return torch.stack(list(group.seen("hrank").values())).sum(0)


def _measured(maps: Tensor) -> Tensor:
    return ranks(as_matrices(maps, "batch")).sum(1)
