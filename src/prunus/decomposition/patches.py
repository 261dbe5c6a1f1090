"""What a layer's kernel meets: its inputs, patch by patch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from prunus.decomposition.geometry import Geometry
from prunus.windows import spread, windows

__all__ = ["channel_rows", "patch_rows"]


def channel_rows(x: Tensor, geometry: Geometry) -> Tensor:
    """(groups, positions, inputs of a group) of an input to the layer."""
    if geometry.kind == "linear":
        return x.reshape(1, -1, geometry.inputs)
    axes = len(geometry.kernel)
    x = x.reshape(-1, *x.shape[-1 - axes :])
    split = x.reshape(len(x), geometry.groups, geometry.group_inputs, -1)
    return split.permute(1, 0, 3, 2).reshape(geometry.groups, -1, geometry.group_inputs)


def patch_rows(
    x: Tensor, geometry: Geometry, most: int | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """(groups, positions of the output, inputs of a group * taps): row times kernel is the output there.

    Args:
        x: what goes into the layer.
        geometry: of the layer.
        most: where there are more positions, so many of them are drawn.
        generator: for drawing.
    """
    if geometry.kind == "linear":
        return channel_rows(x, geometry)
    axes = len(geometry.kernel)
    x = x.reshape(-1, *x.shape[-1 - axes :])  # a layer also takes one sample without a batch
    stride = (1,) * axes if geometry.kind == "transposed" else geometry.stride
    x = _spread(x, geometry) if geometry.kind == "transposed" else _padded(x, geometry)
    x = windows(x, geometry.kernel, stride, geometry.dilation)
    if geometry.kind == "transposed":
        x = x.flip(tuple(range(-axes, 0)))
    groups, inputs = geometry.groups, geometry.group_inputs
    # (batch, positions..., groups, inputs, taps...)
    x = x.movedim(1, 1 + axes).unflatten(1 + axes, (groups, inputs))
    places = x.shape[: 1 + axes]
    count = math.prod(places)
    if most is not None and count > most:
        drawn = torch.randperm(count, generator=generator)[:most].sort().values.to(x.device)
        x = x[torch.unravel_index(drawn, places)]
    else:
        x = x.flatten(0, axes)
    return x.transpose(0, 1).reshape(groups, -1, inputs * geometry.taps)


def _padded(x: Tensor, geometry: Geometry) -> Tensor:
    widths = [width for pair in reversed(geometry.before()) for width in pair]
    if not any(widths):
        return x
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    return F.pad(x, widths, mode=mode)


def _spread(x: Tensor, geometry: Geometry) -> Tensor:
    """What a transposed convolution is an ordinary one over."""
    assert not isinstance(geometry.padding, str)
    x = spread(x, geometry.stride)
    widths: list[int] = []
    for i in reversed(range(len(geometry.kernel))):
        room = geometry.dilation[i] * (geometry.kernel[i] - 1) - int(geometry.padding[i])
        widths += [room, room + geometry.output_padding[i]]
    return F.pad(x, widths)
