"""Norms of the weights that belong to a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.errors import PlanError


@register("l2")
@dataclass(frozen=True)
class L2Norm:
    r"""Euclidean norm of all weights of a unit, over the whole coupled group.

    The score of unit $u$ is $s_u = \sqrt{\sum_m \lVert W_m[u] \rVert_2^2}$ over the group's members $m$: the filters that make
    the channel, with the batch normalization that follows folded in (otherwise the norm ignores the channel's real gain),
    and the columns of the layers that read it.

    Needs no data.

    Example:
        >>> import torch
        >>> from prunus.criteria import GroupView, L2Norm, MemberView
        >>> member = MemberView("conv.weight", 0, True, torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        >>> L2Norm().score(GroupView("conv", 2, (member,)))
        tensor([5., 1.])

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710 (with the 1-norm).
    """

    energy_power: ClassVar[int] = 2  # squares of scores add up over weights

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) norms, >= 0."""
        total = torch.zeros(group.size)
        for member in group.members:
            total += member.power_sum(2).cpu()
        return total.sqrt()


@register("l1")
@dataclass(frozen=True)
class L1Norm:
    r"""Sum of absolute weights of a unit, over the whole coupled group: $s_u = \sum_m \lVert W_m[u] \rVert_1$.

    As `L2Norm`, with the 1-norm of the original paper. Needs no data.

    Example:
        >>> import torch
        >>> from prunus.criteria import GroupView, L1Norm, MemberView
        >>> member = MemberView("conv.weight", 0, True, torch.tensor([[3.0, -4.0], [0.0, 1.0]]))
        >>> L1Norm().score(GroupView("conv", 2, (member,)))
        tensor([7., 1.])

    References:
        Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv:1608.08710.
    """

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) norms, >= 0."""
        total = torch.zeros(group.size)
        for member in group.members:
            total += member.power_sum(1).cpu()
        return total


@register("random")
@dataclass(frozen=True)
class Random:
    """Scores drawn at random, the same in every run with the same seed: the baseline that a criterion must beat.

    Attributes:
        seed: of the random numbers.
    """

    seed: int = 0

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) uniform random numbers."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + group.seed) % (1 << 63))
        return torch.rand(group.size, generator=generator)


def check_scores(scores: object, group: GroupView, method: str) -> Tensor:
    """Scores as (units,) float64.

    Raises:
        PlanError: not a tensor of that shape, or not finite.
    """
    if not isinstance(scores, Tensor) or tuple(scores.shape) != (group.size,):
        got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise PlanError(
            f"{method} must return a tensor of shape ({group.size},) for group {group.name!r}, one score per unit; got {got}"
        )
    if scores.is_complex():
        raise PlanError(f"{method} gave complex scores for group {group.name!r}: real numbers can be ranked")
    scores = scores.detach().double().cpu()
    if not bool(torch.isfinite(scores).all()):
        count = int((~torch.isfinite(scores)).sum())
        raise PlanError(
            f"{method} gave {count} scores that are NaN or infinite for group {group.name!r}: check its weights and data"
        )
    return scores
