"""Fit a layer to the original's outputs, on inputs from the repaired layers before it."""

from __future__ import annotations

import torch
from torch import Tensor

from prunus.recovery.layers import Layer, gain_of
from prunus.recovery.least_squares import Fit, Moments, fit
from prunus.recovery.outcome import Repair
from prunus.recovery.pair import Both, Pair
from prunus.recovery.statistics import like

__all__ = ["compensate"]

_WORTH_A_BIAS = 0.01  # of the error: for less, no parameters are added
_ROWS_PER_INPUT, _LEAST_ROWS, _MOST_ROWS = 24, 8192, 65536


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
    weight = pair.tensors[layer.weight].detach()
    gain = gain_of(layer, pair.tensors) if layer.shortcut else None
    sums, variance = (Moments(), Moments()), Moments()
    rows_needed = min(max(_ROWS_PER_INPUT * weight[0].numel(), _LEAST_ROWS), _MOST_ROWS)
    per_batch = -(-rows_needed // pair.count)
    for both in pair.at(layer.node):
        wanted = _wanted(pair, layer, both, gain)
        if wanted is None:
            return None
        outputs = layer.outputs(wanted)
        rows = torch.randperm(len(outputs), generator=random)[:per_batch]
        x = layer.inputs(pair.now(layer.source, both), rows, tuple(weight.shape[2:])).float()
        t = outputs[rows].float().reshape(len(rows), layer.groups, -1)
        sums[both.held].add(x, t - _predicted(pair, layer, x))
        variance.add(x[:, :, :1], t)
    train, held = sums if sums[1].n else (sums[0], sums[0])
    found = _fitted(pair, layer, train, held)
    if found.weight is None:
        return None
    _apply(pair, layer, found, found.weight)
    scale = max(float(variance.centered(True)[2].sum()), 1e-30)
    return Repair(path, "compensate", found.before / scale, found.after / scale, found.ridge)


def _fitted(pair: Pair, layer: Layer, train: Moments, held: Moments) -> Fit:
    if layer.bias is not None or layer.norm is not None:
        return fit(train, held, bias=True)
    plain = fit(train, held, bias=False)
    if pair.bias_path(layer.node) is None:
        return plain
    offset = fit(train, held, bias=True)
    return offset if offset.after < (1 - _WORTH_A_BIAS) * plain.after else plain


def _wanted(pair: Pair, layer: Layer, both: Both, gain: Tensor | None) -> Tensor | None:
    """What the layer should put out, for one batch: what it did, and what its sum lacks already."""
    y = pair.wanted(layer.node.name, both)
    if y is None or y.shape[layer.channel_axis] != pair.tensors[layer.weight].shape[0]:
        return None
    if layer.shortcut is None or gain is None:
        return y
    other = layer.shortcut.other
    before, after = pair.wanted(other.name, both), pair.now(other, both)
    if before is None or before.shape != after.shape or before.shape != y.shape:
        return y
    inverse = torch.where(gain.abs() > 1e-3 * gain.abs().max(), 1 / gain, 0.0).to(y)
    inverse = inverse.reshape(-1, *(1,) * layer.spatial)
    return y + (before - after) * inverse


def _predicted(pair: Pair, layer: Layer, x: Tensor) -> Tensor:
    weight = pair.tensors[layer.weight].detach().float()
    y = torch.einsum("rgd,god->rgo", x, weight.reshape(layer.groups, -1, x.shape[2]))
    if layer.bias is None:
        return y
    return y + pair.tensors[layer.bias].detach().float().reshape(layer.groups, -1)


def _apply(pair: Pair, layer: Layer, found: Fit, correction: Tensor) -> None:
    weight = pair.tensors[layer.weight]
    pair.tensors[layer.weight] = like(weight, weight.detach().double() + correction.reshape(weight.shape))
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
