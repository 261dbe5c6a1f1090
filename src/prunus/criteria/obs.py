"""Optimal brain surgery on whole channels: what leaving a channel out costs once the others have made up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.criteria.mixtures import mixture_errors, weighed_moments
from prunus.criteria.moments import Sums, second_moments
from prunus.evidence import Need

_KEY, _SENSITIVITY, _WEIGHED = "obs:second_moments", "obs:sensitivity", "obs:weighed_moments"
_DAMPING = 1e-4  # of the mean variance: channels that are sums of others would divide by zero
# Independent errors on P pixels would count P times, and one group alone, cut and repaired, costs about that. Of many groups at
# once the later ones make up for part of what the earlier ones lose, on their larger maps. 0.5 was best of 0, 0.5, 0.75 and 1.
_MAP_POWER = 0.5
_STEPS = 128  # channels leave one by one in groups up to this size, and a few at a time in wider ones


@register("obs")
@dataclass(frozen=True)
class OBS:
    """Greedy optimal brain surgery: the error that remains after the other channels are fitted to replace one.

    Without channel c, the rest can predict it linearly in every layer that reads it; what is lost is the part of it that they
    cannot, as far as the network's outputs depend on it:

        e_c = sum over layers that read it of  sqrt(P) G_cc / [C^-1]_cc

    with C the covariance of the channels (of pixels or tokens), G the second moments of the gradient of random projections of
    the outputs, of unit variance, at this place: |dy/dx|^2 summed over the outputs y, and P the number of pixels or tokens.
    (With `sensitivity=False`, G is W W^T of the weights that read the channels, divided by the variance of what they make, and
    P does not count.) The channel of least error leaves, G and C^-1 are updated as if it had been made up for, and so on: a
    channel's score is its error at the time when it leaves, never less than that of a channel before it. Errors compare between
    layers and add up: allocate with `"knapsack"`. With few samples for so many channels, each would seem to be a sum of the
    others: C is shrunk towards a multiple of the identity.
    Where a unit is several inputs of a layer, as a head is or a channel that is flattened, they leave together:
    e = tr(G_cc [C^-1]_cc^-1) of its block. Queries and keys, which disappear in a product, are scored without repair, as are
    units with unlike numbers of inputs; those that no layer reads directly by their weights.
    Channels of attention heads are different where only products of queries and keys, or one layer behind the values, see them: what
    stays of a head may be mixtures of all its channels, and the repair makes them so. The n-th channel that leaves a head then
    costs the n-th least eigenvalue of C^1/2 G C^1/2 of that head, in which each token counts as much as the outputs depend on it.

    Needs: data, a few hundred inputs without labels. Cost: a pass over them, gradients on 256 of them, and O(d^3) for d
    channels, per layer that reads them.
    Caution: it counts on the repair, see `recover` in `prunus.compress`; without it, the choice is not a good one.

    Example:
        >>> import torch, prunus
        >>> from prunus.criteria import OBS
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)).eval()
        >>> data = [torch.randn(64, 3)]
        >>> plan = prunus.plan(prunus.analyze(net, data[0]), method=OBS(), ratio=0.25, data=data)
        >>> [len(keep) for keep in plan.keep.values()]  # three inputs cannot make four independent channels
        [3]

    References:
        Frantar and Alistarh, Optimal Brain Compression, NeurIPS 2022, arXiv:2208.11580; Kurtic et al., ZipLM, NeurIPS 2023,
        arXiv:2302.04089; Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, 2010, arXiv:0907.4698; Lin et al., MoDeGPT,
        2024, arXiv:2408.09632 (mixtures).
    """

    sensitivity: bool = True

    name: ClassVar[str]
    # scores are errors: they compare between groups as they are, and add up
    layer_norm: ClassVar[str] = "none"
    allocation: ClassVar[str] = "knapsack"
    mixes: ClassVar[bool] = True

    @property
    def needs(self) -> tuple[Need, ...]:
        """Second moments of what is read, and of the outputs' gradients there."""
        moments = Need(_KEY, "read", second_moments, by_position=True)
        felt = Need(_SENSITIVITY, "read", second_moments, probe=True, by_position=True)
        heads = Need(
            _WEIGHED, "read", weighed_moments, probe=True, weighted=True, with_rows=True, by_position=True
        )
        return (moments, felt, heads) if self.sensitivity else (moments,)

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) errors, >= 0."""
        seen = group.seen(_KEY, required=False)
        felt = group.seen(_SENSITIVITY, required=False) if self.sensitivity else {}
        layers = [self._layer(group, seen, felt, layer) for layer in seen]
        readers = [layer for layer in layers if isinstance(layer, _Reader)]
        fixed = [layer for layer in layers if isinstance(layer, Tensor)]
        if not readers and not fixed:
            fixed = [_share(sum((m.power_sum(2).double().cpu() for m in group.members), _zeros(group)))]
        scores = greedy(readers, torch.stack(fixed).sum(0) if fixed else _zeros(group))
        return scores if group.mixable is None else self._mixed(group, seen, felt, scores)

    def _mixed(
        self, group: GroupView, seen: dict[str, Tensor], felt: dict[str, Tensor], scores: Tensor
    ) -> Tensor:
        """The errors of mixtures, for the channels of each row in the order in which they would leave by themselves."""
        rows = torch.as_tensor(group.mixable)
        errors = mixture_errors(rows, group.seen(_WEIGHED, required=False), felt, group.samples)
        if errors is None:
            return scores
        order = rows.gather(1, torch.argsort(scores[rows], 1))
        weight_of_map = max(float(Sums(sums).count.max()) for sums in seen.values()) ** _MAP_POWER
        return scores.scatter(0, order.flatten(), weight_of_map * errors.flatten())

    def _layer(
        self, group: GroupView, seen: dict[str, Tensor], felt: dict[str, Tensor], layer: str
    ) -> _Reader | Tensor | None:
        """What one layer loses; None where another entry says it, or nothing is known."""
        sums = Sums(seen[layer])
        gradients = Sums(felt[layer]) if layer in felt else None
        weight_of_map = float(sums.count.max()) ** _MAP_POWER
        node, _, side = layer.rpartition(":")
        if side in ("0", "1") and (other := seen.get(f"{node}:{1 - int(side)}")) is not None:
            if side == "1":
                return None  # of the same product: what it loses is the same
            if gradients is not None:
                return weight_of_map * sums.by_unit(sums.power * gradients.power)
            return _share(sums.by_unit(sums.squares) * Sums(other).by_unit(Sums(other).squares))
        weight = self._weight(group, layer)
        if gradients is None and weight is None:
            return None
        if gradients is not None and sums.together and gradients.together:
            felt_there = weight_of_map * gradients.gram / gradients.count[:, None]
            return _Reader(sums.covariance(group.samples), felt_there, sums.width)
        if gradients is not None:
            return weight_of_map * sums.by_unit(sums.variance * gradients.power) * sums.repeated(group.size)
        assert weight is not None
        if not sums.together or sums.width > 1:
            return _share(sums.by_unit(sums.variance) * weight.square().sum(1))
        covariance, power = sums.covariance(group.samples), weight @ weight.T
        return _Reader(covariance, power / (power * covariance).sum().clamp(min=1e-300))

    @staticmethod
    def _weight(group: GroupView, layer: str) -> Tensor | None:
        found = [
            member.weight.double().cpu().reshape(group.size, -1)
            for member in group.members
            if not member.produces and member.parameter.rpartition(".")[0] == layer
        ]
        return torch.cat(found, 1) if found else None


def _share(energy: Tensor) -> Tensor:
    """(units,) of the sum over all units."""
    return energy / energy.sum().clamp(min=1e-300)


def _zeros(group: GroupView) -> Tensor:
    return torch.zeros(group.size, dtype=torch.float64)


class _Reader:
    """One layer that reads the channels, while they leave.

    Args:
        covariance: (d, d) of its inputs.
        power: (d, d) how much errors of its inputs, and of pairs of them, count.
        width: inputs of a unit, which stand side by side and leave together.
    """

    def __init__(self, covariance: Tensor, power: Tensor, width: int = 1) -> None:
        damping = _DAMPING * covariance.diagonal().mean().clamp(min=1e-300)
        eye = torch.eye(len(covariance), dtype=torch.float64)
        self.inverse = torch.linalg.inv(covariance + damping * eye)
        self.power = (power + power.T) / 2
        self.width = width

    def errors(self) -> Tensor:
        """(units,) of leaving each out."""
        if self.width == 1:
            return self.power.diagonal().clamp(min=0) / self.inverse.diagonal().clamp(min=1e-300)
        inverse, power = self._blocks(self.inverse), self._blocks(self.power)
        gone = inverse.diagonal(dim1=1, dim2=2).sum(1) <= 0  # their block is zero
        inverse[gone] = torch.eye(self.width, dtype=torch.float64)
        return torch.linalg.solve(inverse, power).diagonal(dim1=1, dim2=2).sum(1).clamp(min=0)

    def _blocks(self, matrix: Tensor) -> Tensor:
        """(units, width, width) copies of the blocks on the diagonal."""
        parts = matrix.unflatten(0, (-1, self.width)).unflatten(2, (-1, self.width))
        every = torch.arange(len(parts))
        return parts[every, :, every]

    def remove(self, units: Tensor) -> None:
        """Leave units out, after the others have made up for them: W <- W - W_M Hi_MM^-1 Hi_M, Hi likewise."""
        chosen = (units[:, None] * self.width + torch.arange(self.width)).flatten()
        block = self.inverse[chosen][:, chosen]
        column = torch.linalg.solve(block, self.inverse[chosen])  # (m, d)
        self.inverse.addmm_(self.inverse[:, chosen], column, alpha=-1)
        # P <- P - X C - C^T X^T with X = P_M - C^T P_MM / 2, in one product
        cross = self.power[:, chosen] - column.T @ self.power[chosen][:, chosen] / 2
        self.power.addmm_(torch.cat([cross, column.T], 1), torch.cat([column, cross.T]), alpha=-1)
        # what is gone stays gone, whatever rounding says
        self.power[chosen], self.power[:, chosen] = 0, 0
        self.inverse[chosen], self.inverse[:, chosen] = 0, 0


def greedy(readers: list[_Reader], fixed: Tensor) -> Tensor:
    """(d,) errors at which the channels leave, one after another; see `OBS`."""
    size = len(fixed)
    at_once = -(-size // _STEPS)
    scores = torch.full((size,), float("inf"), dtype=torch.float64)
    left = torch.ones(size, dtype=torch.bool)
    least = 0.0
    while left.any():
        errors = torch.stack([fixed, *(reader.errors() for reader in readers)]).sum(0)
        errors[~left] = float("inf")
        count = min(at_once, int(left.sum()))
        found = torch.topk(errors, count, largest=False)
        for value, index in zip(found.values.tolist(), found.indices.tolist(), strict=True):
            least = max(least, value)
            scores[index] = least
        for reader in readers:
            reader.remove(found.indices)
        left[found.indices] = False
    return scores
