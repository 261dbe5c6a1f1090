"""Fit a layer in front of a clipping activation: only what the activation lets through has to be right."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.recovery.layers import Clip, Layer, affine_of
from prunus.recovery.least_squares import Fit, Fitter, Moments
from prunus.recovery.pair import Pair
from prunus.recovery.rows import Rows, Sample
from prunus.recovery.statistics import Statistics

__all__ = ["clipped"]

_ROUNDS, _WORTH_A_ROUND = 8, 0.02


def clipped(
    pair: Pair, layer: Layer, rows: Rows, fitter: Fitter, sums: tuple[Moments, Moments], linear: Fit
) -> tuple[Fit, float]:
    """Improve a fit by what its errors do behind a ReLU or the like.

    Where both networks are clipped to the same value, nothing is missing: the target there is what the layer puts out by now, or
    the nearest number that is clipped. The squared distance to such targets bounds the one behind the activation from above
    and equals it at the current weights, so that each new fit lowers it. Held-out rows decide when to stop.

    Args:
        pair: both networks.
        layer: of the cut one, with a clip.
        rows: of its inputs and outputs.
        fitter: of the linear fit.
        sums: of the rows to fit and of the held-out ones.
        linear: where to start.

    Returns:
        The best of the fits, or to change nothing, with sums of squares behind the activation as its errors, and the sum of
        squares about the mean there.

    References:
        Zhang et al., Accelerating Very Deep Convolutional Networks for Classification and Detection, 2015, arXiv:1505.06798
        (nonlinear response reconstruction, there with a penalty instead of a bound).
    """
    assert layer.clip is not None
    judge = _Judge(layer, pair, layer.clip)
    best, least, current = linear, float("inf"), linear
    start, scale = judge.start(rows, held_out=sums[1].n > 0)
    for number in range(_ROUNDS + 1):
        aimed = sums[0].without_targets(), sums[1].without_targets()
        error = 0.0
        for sample in rows:
            y = _output(sample, current)
            aimed[sample.held].aim(sample.x, judge.targets(sample, y) - sample.start)
            if sample.held or not sums[1].n:
                error += judge.error(sample, y)
        if error >= least:
            break
        enough = error > (1 - _WORTH_A_ROUND) * least
        best, least = current, error
        if enough:
            break
        if number < _ROUNDS:
            current = fitter.fit(aimed[0], aimed[1] if aimed[1].n else aimed[0])
        if current.weight is None:
            break
    if least >= start:  # the cut weights let through what they should, or come nearer to it
        return Fit(None, None, start, start), scale
    return Fit(best.weight, best.bias, start, least, best.ridge), scale


def _output(sample: Sample, fit: Fit) -> Tensor:
    assert fit.weight is not None
    y = sample.start + torch.einsum("rgd,god->rgo", sample.x, fit.weight.float())
    return y if fit.bias is None else y + fit.bias.float()


class _Judge:
    """Knows what becomes of a layer's output up to its clip."""

    def __init__(self, layer: Layer, pair: Pair, clip: Clip) -> None:
        self._clip = clip
        weight = pair.tensors[layer.weight]
        gain, shift = affine_of(clip.norms, pair.tensors, layer.width(weight))
        self._gain, self._shift = (
            each.to(weight.device).float().reshape(layer.groups, -1) for each in (gain, shift)
        )
        self._felt = self._gain.abs() > 1e-3 * self._gain.abs().max()

    def _reached(self, sample: Sample, y: Tensor) -> Tensor:
        reached = y * self._gain + self._shift
        return reached if sample.other is None else reached + sample.other

    def targets(self, sample: Sample, y: Tensor) -> Tensor:
        """What the layer should rather put out where it now puts out `y`."""
        low, high = self._clip.low, self._clip.high
        wanted, now = self._reached(sample, sample.wanted), self._reached(sample, y)
        aim = torch.where(
            wanted <= low, now.clamp(max=low), torch.where(wanted >= high, now.clamp(min=high), wanted)
        )
        return torch.where(self._felt, y + (aim - now) / self._gain, sample.wanted)

    def error(self, sample: Sample, y: Tensor) -> float:
        """Sum of squares behind the activation."""
        one, other = (
            self._reached(sample, v).clamp(self._clip.low, self._clip.high) for v in (sample.wanted, y)
        )
        return float((one - other).square().sum(dtype=torch.float64))

    def start(self, rows: Rows, held_out: bool) -> tuple[float, float]:
        """The error of the cut layer on rows that judge, and the variance of what should be there, times their number."""
        error, seen = 0.0, Statistics()
        for sample in rows:
            if sample.held or not held_out:
                error += self.error(sample, sample.start)
                wanted = self._reached(sample, sample.wanted).clamp(self._clip.low, self._clip.high)
                seen.add(wanted.flatten(1))
        return error, max(seen.spread(), 1e-30)
