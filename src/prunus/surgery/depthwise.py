"""Depthwise convolutions in float64, for which torch has no kernel of their own on the CPU.

It loops over the groups and copies windows in each, which is up to ten times slower than adding up shifted
inputs and would make verification of networks full of them take longer than everything else together.
"""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["is_slow_depthwise", "shifted_sum"]


def is_slow_depthwise(func: Any, args: tuple[Any, ...]) -> bool:
    """Is this a call of ``aten.convolution`` that `shifted_sum` does faster?"""
    if func is not torch.ops.aten.convolution.default or len(args) != 9:
        return False
    value, weight, *_, transposed, _, groups = args
    depthwise = groups == value.shape[1] > 1 and weight.shape[1] == 1 and not transposed
    return depthwise and value.dtype == torch.float64 and value.device.type == "cpu"


def shifted_sum(
    value: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    *_: Any,
) -> Tensor:
    """The depthwise convolution of ``aten.convolution``, as a sum over the positions of the kernel.

    Args:
        value: (N, C, ...).
        weight: (C * multiplier, 1, ...).
        bias: (C * multiplier,).
        stride: One for each trailing axis, as are `padding` and `dilation`.
        padding: Zeros on either side.
        dilation: Distance between the positions of the kernel.
    """
    kernel = weight.shape[2:]
    stride, padding, dilation = (_each(x, len(kernel)) for x in (stride, padding, dilation))
    value = F.pad(value, [width for width in reversed(padding) for _ in range(2)])
    if weight.shape[0] != value.shape[1]:
        value = value.repeat_interleave(weight.shape[0] // value.shape[1], 1)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    sizes = [(v - r - 1) // s + 1 for v, r, s in zip(value.shape[2:], reach, stride, strict=True)]
    shape = (1, -1, *([1] * len(kernel)))
    out = value.new_zeros((value.shape[0], weight.shape[0], *sizes))
    if bias is not None:
        out += bias.reshape(shape)
    for offset in itertools.product(*(range(k) for k in kernel)):
        starts = [o * d for o, d in zip(offset, dilation, strict=True)]
        window = [slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, sizes, stride, strict=True)]
        out.addcmul_(value[(..., *window)], weight[(slice(None), 0, *offset)].reshape(shape))
    return out


def _each(numbers: list[int], axes: int) -> list[int]:
    return list(numbers) * axes if len(numbers) == 1 else list(numbers)
