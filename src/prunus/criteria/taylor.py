"""What the loss would change by without a channel, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, chosen_from, register
from prunus.evidence import Need


@register("taylor")
@dataclass(frozen=True)
class Taylor:
    r"""First-order estimate of how much the loss of a sample moves when the unit is removed.

    The score of unit $u$ is $s_u = \frac{1}{N} \sum_n \left| \sum_r \sum_{i \in u} x_{r,i} \,
    \partial L_n / \partial x_{r,i} \right|^p$: over the $N$ samples, the sum of activation times gradient over all layers $r$
    that read the unit, with the gradient through each of them alone. That is the loss that would be missing if none read it.
    Gradients of the weights that read it, times these weights, have the same sum.

    Needs data and a loss: batches that carry integer labels, `(inputs, labels)` or a dictionary with `"labels"`, get the
    cross-entropy; for all others pass `loss=`, a function `(outputs, batch) -> scalar`, averaged over the batch.

    Cost: a forward and a backward pass, and the memory that training on a batch takes.

    Caution:
        At an optimum the mean of the gradients vanishes, which is why absolute values are taken sample by sample. Where
        samples cannot be told apart within a value, they are taken batch by batch.

    Attributes:
        power: $p$: 1 as it is, 2 squared.

    Raises:
        ConfigError: another power.

    Example:
        >>> import torch, prunus
        >>> net = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)).eval()
        >>> with torch.no_grad():
        ...     _ = net[2].weight[:, 1].zero_()  # nobody reads this unit
        >>> data = [(torch.randn(16, 8), torch.randint(0, 3, (16,)))]
        >>> prunus.compress(net, torch.randn(2, 8), method="taylor", ratio={"0": 0.25}, data=data).plan.keep
        {'0': (0, 2, 3)}

    References:
        Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019, arXiv:1906.10771.
    """

    power: int = 1

    def __post_init__(self) -> None:
        chosen_from(self, power=(1, 2))

    @property
    def needs(self) -> tuple[Need, ...]:
        """Activations times gradients."""
        return (Need(self._key, "read", _summed, gradients=True, finish=partial(_finished, self.power)),)

    @property
    def _key(self) -> str:
        return f"taylor:{self.power}"

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) mean changes of the loss, >= 0.

        Raises:
            ConfigError: without data.
        """
        return torch.stack(list(group.seen(self._key).values())).sum(0)


def _summed(products: Tensor) -> Tensor:
    return products.flatten(2).sum(2) if products.dim() > 2 else products


def _finished(power: int, effects: Tensor) -> Tensor:
    return effects.abs().pow(power).sum(1)
