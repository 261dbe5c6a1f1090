"""What a convolution, transposed or not, multiplies its weight with: windows of its input, and the weight laid out to match."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prunus.windows import spread, windows

__all__ = ["CONVS", "TRANSPOSED", "as_weight", "matrix_of", "windows_of"]

aten = torch.ops.aten
TRANSPOSED = {
    aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 2,
    aten.conv_transpose3d.input: 3,
}
CONVS = {
    f: n
    for n, name in ((1, "conv1d"), (2, "conv2d"), (3, "conv3d"))
    for f in (getattr(aten, name).default, getattr(aten, name).padding)
} | TRANSPOSED  # fmt: skip


def windows_of(x: Tensor, kernel: tuple[int, ...], arguments: Mapping[str, Any], transposed: bool) -> Tensor:
    """(batch, in, *out, *kernel), a view where nothing is padded.

    Args:
        x: (batch, in, *sizes).
        kernel: sizes of the kernel.
        arguments: stride, padding and so on, of the call.
        transposed: whether it is a transposed convolution.
    """
    count = len(kernel)
    stride, dilation = (_each(arguments.get(k, 1), count) for k in ("stride", "dilation"))
    spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = arguments.get("padding", 0)
    if transposed:
        more = _each(arguments.get("output_padding", 0), count)
        gone = _each(padding, count)
        sides = [(span - p, span - p + m) for span, p, m in zip(spans, gone, more, strict=True)]
        x, stride = spread(x, stride), [1] * count
    elif padding == "same":
        sides = [(span // 2, span - span // 2) for span in spans]
    else:
        sides = [(p, p) for p in _each(0 if padding == "valid" else padding, count)]
    if any(before or after for before, after in sides):
        x = functional.pad(x, [side for pair in reversed(sides) for side in pair])
    return windows(x, kernel, stride, dilation)


def matrix_of(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    """(groups, out per group, in per group times kernel) of a weight, in the order of `windows_of`."""
    if not transposed:
        return weight.reshape(groups, weight.shape[0] // groups, -1)
    apart = weight.unflatten(0, (groups, -1)).transpose(1, 2)  # (groups, out, in, *kernel)
    return apart.flip(tuple(range(3, apart.dim()))).flatten(2)


def as_weight(matrix: Tensor, weight: Tensor, transposed: bool) -> Tensor:
    """What `matrix_of` laid out, in the shape of a weight again."""
    if not transposed:
        return matrix.reshape(weight.shape)
    apart = matrix.reshape(*matrix.shape[:2], -1, *weight.shape[2:])
    return apart.flip(tuple(range(3, apart.dim()))).transpose(1, 2).reshape(weight.shape)


def _each(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]
