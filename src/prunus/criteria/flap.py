"""How much of what later layers see fluctuates with a channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.evidence import Need

_KEY = "moments"


@register("flap")
@dataclass(frozen=True)
class FLAP:
    r"""Variance of a unit's activations, weighted by the weights that read them.

    The score of unit $u$ is $s_u = \sum_m \mathrm{Var}(x_{m,u}) \, \lVert W_m[:, u] \rVert_2^2$ over the layers $m$ that read
    the unit: the variance that their outputs would lose if a bias stood in for the mean of the unit, and units were
    uncorrelated. In a product of two activations (queries and keys), the second moment of the other side stands in for the
    weights.

    Needs data: a few hundred samples, no labels.

    Cost: one forward pass.

    Caution:
        As published, layers are compared by `layer_norm="standard_score"` and ranked together, `allocation="global"`.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).eval()
        >>> with torch.no_grad():
        ...     _ = net[0].weight[3].zero_(), net[0].bias[3].fill_(100)  # large, but always the same
        >>> data = [torch.randn(64, 8)]
        >>> prunus.compress(net, torch.randn(2, 8), method="flap", ratio={"0": 0.25}, data=data).plan.keep
        {'0': (0, 1, 2)}

    References:
        An et al., Fluctuation-based Adaptive Structured Pruning for Large Language Models, AAAI 2024, arXiv:2312.11983.
    """

    @property
    def needs(self) -> tuple[Need, ...]:
        """First and second moments of what is read."""
        return (Need(_KEY, "read", moments),)

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) variances, >= 0.

        Raises:
            ConfigError: without data.
        """
        seen = group.seen(_KEY)
        total = torch.zeros(group.size, dtype=torch.float64)
        for layer, sums in seen.items():
            count = sums[:, 0].clamp(min=1e-300)
            mean, second = sums[:, 1] / count, sums[:, 2] / count
            total += (second - mean.square()).clamp(min=0) * self._gain(group, seen, layer)
        return total

    @staticmethod
    def _gain(group: GroupView, seen: dict[str, Tensor], layer: str) -> Tensor:
        """(units,) squared weights behind the unit, or the second moment of what it is multiplied with."""
        node, _, side = layer.rpartition(":")
        other = seen.get(f"{node}:{1 - int(side)}") if side in ("0", "1") else None
        if other is not None:
            return other[:, 2] / other[:, 0].clamp(min=1e-300)
        gain = torch.zeros(group.size, dtype=torch.float64)
        for member in group.members:
            if member.parameter.rpartition(".")[0] == layer and not member.produces:
                gain += member.power_sum(2).double().cpu()
        return gain


def moments(x: Tensor) -> Tensor:
    """(positions, 3) number, sum and sum of squares of (positions, samples, *map) activations."""
    flat = x.flatten(1).double()
    count = flat.new_full((len(flat),), flat.shape[1])
    return torch.stack([count, flat.sum(1), flat.square().sum(1)], 1)
