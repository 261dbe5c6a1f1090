"""Normalisations of a partly removed value, computed over what is kept.

Every function takes the arguments of the operator by name and the masks of those that are partly removed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunus.surgery.masks import count, fill, varies

__all__ = ["NORMS", "weight_norm"]

Arguments = dict[str, Any]
MaskOf = dict[str, Tensor]


def moments(
    value: Tensor, mask: Tensor | None, axes: tuple[int, ...], correction: float = 0
) -> tuple[Tensor, Tensor]:
    """Variance and mean of the kept elements along the axes, which stay with size 1."""
    if mask is None or not varies(mask, axes):
        variance, mean = torch.var_mean(value, axes, correction=correction, keepdim=True)
        return variance, mean
    mask = mask.to(value.device)
    number = count(mask, value.shape, axes, value.dtype)
    some = number.clamp(min=1)  # where nothing is kept, nobody looks, but it must not raise
    mean = fill(value, mask).sum(axes, keepdim=True) / some
    variance = fill(value - mean, mask).square().sum(axes, keepdim=True) / (number - correction)
    return variance, mean


def layer_norm(a: Arguments, masks: MaskOf) -> Tensor:
    return native_layer_norm(a, masks)[0]


def native_layer_norm(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor, Tensor]:
    value = a["input"]
    axes = _last(value, len(a["normalized_shape"]))
    variance, mean = moments(value, masks.get("input"), axes)
    inverse = (variance + a["eps"]).rsqrt()
    return _affine((value - mean) * inverse, a["weight"], a["bias"]), mean, inverse


def rms_norm(a: Arguments, masks: MaskOf) -> Tensor:
    return _fused_rms_norm(a, masks)[0]


def _fused_rms_norm(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor]:
    value, mask = a["input"], masks.get("input")
    axes = _last(value, len(a["normalized_shape"]))
    if mask is None or not varies(mask, axes):
        square = value.square().mean(axes, keepdim=True)
    else:
        number = count(mask.to(value.device), value.shape, axes, value.dtype).clamp(min=1)
        square = fill(value, mask).square().sum(axes, keepdim=True) / number
    eps = torch.finfo(value.dtype).eps if a["eps"] is None else a["eps"]
    inverse = (square + eps).rsqrt()
    return _affine(value * inverse, a["weight"], None), inverse


def group_norm(a: Arguments, masks: MaskOf) -> Tensor:
    return _group_norm(a["input"], masks.get("input"), a["num_groups"], a["weight"], a["bias"], a["eps"])[0]


def native_group_norm(a: Arguments, masks: MaskOf) -> tuple[Tensor, Tensor, Tensor]:
    out, mean, inverse = _group_norm(
        a["input"], masks.get("input"), a["group"], a["weight"], a["bias"], a["eps"]
    )
    rows = (a["input"].shape[0], a["group"])
    return out, mean.reshape(rows), inverse.reshape(rows)


def _group_norm(
    value: Tensor, mask: Tensor | None, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    n, channels, *space = value.shape
    grouped = value.reshape(n, groups, channels // groups, *space)
    if mask is not None:
        mask = mask.expand(mask.shape[0], channels, *mask.shape[2:])
        mask = mask.reshape(mask.shape[0], groups, channels // groups, *mask.shape[2:])
    variance, mean = moments(grouped, mask, tuple(range(2, grouped.dim())))
    inverse = (variance + eps).rsqrt()
    out = ((grouped - mean) * inverse).reshape(value.shape)
    return _affine(out, _per_channel(weight, value), _per_channel(bias, value)), mean, inverse


def batch_norm(a: Arguments, masks: MaskOf) -> Tensor:
    """In training mode only (weight standardisation); the running statistics, which it ignores, stay."""
    value = a["input"]
    return _from_data(a, masks, (0, *range(2, value.dim())))


def instance_norm(a: Arguments, masks: MaskOf) -> Tensor:
    """With the statistics of the input only."""
    value = a["input"]
    return _from_data(a, masks, tuple(range(2, value.dim())))


def weight_norm(a: Arguments, masks: MaskOf, stored: torch.dtype) -> Tensor | None:
    """Weights of a direction and a gain: those that stay keep their values, as the gain makes up for what is removed.

    The new gain has the precision in which the network stores it. None when nothing is removed along the axes of the
    norm, and the operator itself does it.
    """
    v, g, mask, dim = a["v"], a["g"], masks.get("v"), a["dim"]
    axes = tuple(axis for axis in range(v.dim()) if axis != dim)
    if mask is None or not varies(mask, axes):
        return None
    norm, left = (torch.linalg.vector_norm(x.double(), dim=axes, keepdim=True) for x in (v, fill(v, mask)))
    gain = (g.double() * (left / norm).reshape(g.shape)).to(stored).to(v.dtype)
    left = left.masked_fill(left == 0, 1).to(v.dtype)  # rows that are removed as a whole
    return v * (gain.reshape(left.shape) / left)


def _from_data(a: Arguments, masks: MaskOf, axes: tuple[int, ...]) -> Tensor:
    value = a["input"]
    variance, mean = moments(value, masks.get("input"), axes)
    out = (value - mean) * (variance + a["eps"]).rsqrt()
    return _affine(out, _per_channel(a["weight"], value), _per_channel(a["bias"], value))


def _affine(value: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    if weight is not None:
        value = value * weight
    return value if bias is None else value + bias


def _per_channel(vector: Tensor | None, value: Tensor) -> Tensor | None:
    return None if vector is None else vector.reshape(1, -1, *([1] * (value.dim() - 2)))


def _last(value: Tensor, number: int) -> tuple[int, ...]:
    return tuple(range(value.dim() - number, value.dim()))


NORMS: dict[str, Callable[[Arguments, MaskOf], Any]] = {
    function.__name__: function
    for function in (
        layer_norm,
        native_layer_norm,
        rms_norm,
        _fused_rms_norm,
        group_norm,
        native_group_norm,
        instance_norm,
        batch_norm,
    )
}
