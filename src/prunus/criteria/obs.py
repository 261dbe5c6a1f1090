"""Optimal brain surgery on whole channels: what leaving a channel out costs once the others have made up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from prunus.criteria.base import GroupView, register
from prunus.evidence import Need
from prunus.gram import gram

_KEY, _SENSITIVITY = "obs:second_moments", "obs:sensitivity"
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
        arXiv:2302.04089; Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, 2010, arXiv:0907.4698.
    """

    sensitivity: bool = True

    name: ClassVar[str]
    # scores are errors: they compare between groups as they are, and add up
    layer_norm: ClassVar[str] = "none"
    allocation: ClassVar[str] = "knapsack"

    @property
    def needs(self) -> tuple[Need, ...]:
        """Second moments of what is read, and of the outputs' gradients there."""
        moments = Need(_KEY, "read", second_moments, by_position=True)
        felt = Need(_SENSITIVITY, "read", second_moments, probe=True, by_position=True)
        return (moments, felt) if self.sensitivity else (moments,)

    def score(self, group: GroupView) -> Tensor:
        """Return (units,) errors, >= 0."""
        seen = group.seen(_KEY, required=False)
        felt = group.seen(_SENSITIVITY, required=False) if self.sensitivity else {}
        layers = [self._layer(group, seen, felt, layer) for layer in seen]
        readers = [layer for layer in layers if isinstance(layer, _Reader)]
        fixed = [layer for layer in layers if isinstance(layer, Tensor)]
        if not readers and not fixed:
            fixed = [_share(sum((m.power_sum(2).double().cpu() for m in group.members), _zeros(group)))]
        return greedy(readers, torch.stack(fixed).sum(0) if fixed else _zeros(group))

    def _layer(
        self, group: GroupView, seen: dict[str, Tensor], felt: dict[str, Tensor], layer: str
    ) -> _Reader | Tensor | None:
        """What one layer loses; None where another entry says it, or nothing is known."""
        sums = _Sums(seen[layer])
        gradients = _Sums(felt[layer]) if layer in felt else None
        weight_of_map = float(sums.count.max()) ** _MAP_POWER
        node, _, side = layer.rpartition(":")
        if side in ("0", "1") and (other := seen.get(f"{node}:{1 - int(side)}")) is not None:
            if side == "1":
                return None  # of the same product: what it loses is the same
            if gradients is not None:
                return weight_of_map * sums.by_unit(sums.power * gradients.power)
            return _share(sums.by_unit(sums.squares) * _Sums(other).by_unit(_Sums(other).squares))
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


class _Sums:
    """What `second_moments` has put together: (units, ...), or (units, width, ...) apart by position."""

    def __init__(self, sums: Tensor) -> None:
        self.width = sums.shape[1] if sums.dim() == 3 else 1
        sums = sums.reshape(-1, sums.shape[-1])
        self.gram, self.squares, self.total = sums[:, :-3], sums[:, -3], sums[:, -2]
        self.count = sums[:, -1].clamp(min=1e-300)
        self.together = self.gram.shape[0] == self.gram.shape[1]  # all products of positions are known

    @property
    def power(self) -> Tensor:
        return self.squares / self.count

    @property
    def variance(self) -> Tensor:
        return (self.power - (self.total / self.count).square()).clamp(min=0)

    def by_unit(self, values: Tensor) -> Tensor:
        return values.reshape(-1, self.width).sum(1)

    def repeated(self, size: int) -> float:
        """Positions of a unit, where they were summed."""
        return 1.0 if self.together or self.width > 1 else max(self.gram.shape[1], size) / size

    def covariance(self, samples: int) -> Tensor:
        """Of the inputs; the less data there is for its size, the more of it is taken for chance."""
        mean = self.total / self.count
        covariance = self.gram / self.count[:, None] - mean[:, None] * mean[None, :]
        return shrunk((covariance + covariance.T) / 2, samples * float(self.count.max()))


def second_moments(x: Tensor) -> Tensor:
    """(positions, positions + 3) products, squares, sum and number of (positions, samples, *map) activations, in float64.

    Products are taken about the means: of what hardly varies about a large mean, single precision would lose the variance.
    """
    flat = x.flatten(1).float()
    size, count = flat.shape
    mean = flat.mean(1)  # any numbers near it would do
    flat = flat - mean[:, None]
    rest, mean = flat.sum(1).double(), mean.double()
    found = torch.empty(size, size + 3, dtype=torch.float64, device=x.device)
    products, half = found[:, :size], rest + count / 2 * mean
    products.copy_(gram(flat))
    products.addmm_(torch.stack([half, mean], 1), torch.stack([mean, half]))
    found[:, size], found[:, size + 1], found[:, size + 2] = products.diagonal(), rest + count * mean, count
    return found


def shrunk(covariance: Tensor, count: float) -> Tensor:
    """An estimate of the covariance from that of `count` samples: part of it is a multiple of the identity.

    Where there are hardly more samples than channels, each would seem to be a sum of the others. How much is shrunk follows
    from the matrix: oracle approximating shrinkage, Chen et al., 2010, arXiv:0907.4698.
    """
    size = len(covariance)
    square, trace = float(covariance.square().sum()), float(covariance.trace())
    chance = (count + 1 - 2 / size) * (square - trace**2 / size)
    part = min(1.0, ((1 - 2 / size) * square + trace**2) / chance) if chance > 0 else 1.0
    return (1 - part) * covariance + part * trace / size * torch.eye(size, dtype=covariance.dtype)


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
