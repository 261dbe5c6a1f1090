"""The scale that training gave a channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.errors import ConfigError


@register("bn_scale")
@dataclass(frozen=True)
class BatchNormScale:
    r"""Absolute weight of the batch normalization right behind each layer that makes the unit.

    The score of unit $u$ is $s_u = \sum_m \lvert \gamma_m[u] \rvert$ over the layers $m$ that make the group's channels. It
    means most where training pressed these weights toward zero, as network slimming does.

    Needs no data, but a batch normalization with weights behind every layer that makes channels.

    Example:
        >>> import torch
        >>> from prunus.criteria import BatchNormScale, GroupView, MemberView
        >>> scale = torch.tensor([[0.5], [-2.0]])
        >>> member = MemberView("conv.weight", 0, True, torch.ones(2, 9), scale)
        >>> BatchNormScale().score(GroupView("conv", 2, (member,)))
        tensor([0.5000, 2.0000])

    References:
        Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017, arXiv:1708.06519.
    """

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) sums of absolute weights, >= 0.

        Raises:
            ConfigError: a layer of the group has no batch normalization right behind it.
        """
        made = [m for m in group.members if m.produces]
        bare = [m.parameter.rpartition(".")[0] or m.parameter for m in made if m.norm_scale is None]
        if bare or not made:
            named = list(dict.fromkeys(bare))
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            where = ", ".join(named[:3]) + more or "what makes its channels"
            raise ConfigError(
                f"bn_scale: group {group.name!r} has no batch normalization with weights right behind {where}. "
                f"Leave it alone with hold={[group.name]!r}, or use another method, such as 'l2'."
            )
        total = torch.zeros(group.size)
        for member in made:
            if member.norm_scale is not None:
                total += member.norm_scale.float().abs().sum(1).cpu()
        return total
