"""Channels that compute a constant."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunus.criteria.base import register
from prunus.criteria.flap import moments
from prunus.evidence import Need


@register("dead")
@dataclass(frozen=True)
class Dead:
    """Remove what computes a constant, and what nobody uses; nothing changes. No target is needed.

    A unit leaves where each layer that reads it gets zero from it, or a constant that its bias (or the batch normalization
    behind it) can take up exactly, or multiplies it with weights of zero. That is told from the graph and its parameters:
    filters of zeros, also those that masks make, batch normalizations with a weight of zero, rectifiers behind what is never
    positive. A constant that meets zeros of a padding, or a layer without a bias, stays; so do units in a mean or a norm over
    channels. In groups whose rows lose equally many, the row with the fewest such units decides; one unit stays in any case.

    Needs no data. With data, units that never vary on it leave as well, where the repair can make up for their mean.

    Cost: one pass over the graph, about as long as reading all weights.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3)).eval()
        >>> with torch.no_grad():
        ...     _ = net[0].weight[2].zero_(), net[0].bias[2].fill_(0.5)  # always 0.5
        >>> result = prunus.compress(net, torch.randn(2, 3, 8, 8), method="dead")
        >>> result.plan.keep
        {'0': (0, 1, 3)}
        >>> x = torch.randn(5, 3, 8, 8)
        >>> bool(torch.allclose(result.model(x), net(x), atol=1e-6))
        True
    """

    name: ClassVar[str]
    KEY: ClassVar[str] = "moments"

    @property
    def needs(self) -> tuple[Need, ...]:
        """First and second moments of what is read; only where there is data."""
        return (Need(self.KEY, "read", moments),)
