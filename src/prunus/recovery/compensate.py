"""Fit a layer to the original's outputs, on inputs from the repaired layers before it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.recovery.clipped import clipped
from prunus.recovery.layers import Layer
from prunus.recovery.least_squares import Fit, Fitter, Moments
from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Pair
from prunus.recovery.rows import Rows
from prunus.recovery.statistics import Statistics, like

__all__ = ["compensate"]

_WORTH_A_BIAS = 0.01  # of the error: for less, no parameters are added


def compensate(pair: Pair, layer: Layer, path: str, random: torch.Generator) -> Repair | None:
    """Fit one layer; its tensors in `pair` are replaced.

    Args:
        pair: both networks.
        layer: of the cut one.
        path: what the layer is called.
        random: draws the rows that are used.

    Returns:
        What was done; None where nothing helps, or what the layer should put out is not known.
    """
    sums, outputs, rows = (Moments(), Moments()), Statistics(), Rows(pair, layer, random)
    for sample in rows:
        sums[sample.held].add(sample.x, sample.wanted - sample.start)
        outputs.add(sample.wanted.flatten(1))
    if not sums[0].n + sums[1].n:
        return None
    train, held = sums if sums[1].n else (sums[0], sums[0])
    fitter, found = _fitted(pair, layer, train, held)
    if found.weight is None:
        return None
    scale = max(outputs.spread() / outputs.n, 1e-30)
    if layer.clip is not None and (layer.clip.other is None or rows.shares_sum):
        found, scale = clipped(pair, layer, rows, fitter, sums, found)
    if found.weight is None:
        return None
    _apply(pair, layer, found, found.weight)
    return Repair(path, "compensate", found.before / scale, found.after / scale, found.ridge)


def _fitted(pair: Pair, layer: Layer, train: Moments, held: Moments) -> tuple[Fitter, Fit]:
    with_bias, without = Fitter(True), Fitter(False)
    if layer.bias is not None or layer.norm is not None:
        return with_bias, with_bias.fit(train, held)
    plain = without.fit(train, held)
    if pair.bias_path(layer.node) is None:
        return without, plain
    offset = with_bias.fit(train, held)
    better = offset.after < (1 - _WORTH_A_BIAS) * plain.after
    return (with_bias, offset) if better else (without, plain)


def _apply(pair: Pair, layer: Layer, found: Fit, correction: Tensor) -> None:
    weight = pair.tensors[layer.weight]
    pair.tensors[layer.weight] = like(weight, weight.detach().double() + layer.as_weight(correction, weight))
    if found.bias is None:
        return
    offset = found.bias.reshape(-1)
    if layer.bias is not None:
        bias = pair.tensors[layer.bias]
        pair.tensors[layer.bias] = like(bias, bias.detach().double() + offset)
    elif layer.norm_mean is not None:
        mean = pair.tensors[layer.norm_mean]
        pair.tensors[layer.norm_mean] = like(mean, mean.double() - offset)
    elif (path := pair.bias_path(layer.node)) is not None:
        pair.give_bias(layer.node, path, offset)
