"""A layer as a chain of smaller layers: built, and multiplied out again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunus.decomposition.geometry import CONVS, TRANSPOSED, Geometry, dense_weight

__all__ = ["Step", "build", "product"]


@dataclass(frozen=True, eq=False)
class Step:
    """One layer of a chain.

    Attributes:
        geometry: how it is applied.
        kernel: (groups, outputs, inputs, taps) float64.
    """

    geometry: Geometry
    kernel: Tensor


def build(
    steps: list[Step],
    bias: Tensor | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    requires_grad: bool = True,
    bias_grad: bool = True,
) -> nn.Sequential:
    """Plain layers in a row, the bias in the last: what stands before it would meet padding."""
    layers = [
        _layer(step, bias if step is steps[-1] else None, dtype, device, requires_grad, bias_grad)
        for step in steps
    ]
    return nn.Sequential(*layers)


def _layer(
    step: Step,
    bias: Tensor | None,
    dtype: torch.dtype,
    device: torch.device | str,
    requires_grad: bool,
    bias_grad: bool,
) -> nn.Module:
    g = step.geometry
    placed: dict[str, Any] = {"bias": bias is not None, "dtype": dtype, "device": "meta"}
    if g.kind == "linear":
        layer: nn.Module = nn.Linear(g.inputs, g.outputs, **placed)
    else:
        placed |= {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.groups}
        placed |= {"padding_mode": g.padding_mode}
        if g.kind == "transposed":
            kind = TRANSPOSED[len(g.kernel)]
            placed["output_padding"] = g.output_padding
        else:
            kind = CONVS[len(g.kernel)]
        layer = kind(g.inputs, g.outputs, g.kernel, **placed)
    weight = dense_weight(step.kernel, g).to(device, dtype)
    layer.register_parameter("weight", nn.Parameter(weight, requires_grad=requires_grad))
    if bias is not None:
        own = bias.detach().to(device, dtype).clone()
        layer.register_parameter("bias", nn.Parameter(own, requires_grad=bias_grad))
    return layer


def product(steps: list[Step], geometry: Geometry) -> Tensor:
    """(groups, outputs, inputs, taps): the kernel of the one layer of this geometry that the chain amounts to."""
    groups = geometry.groups
    total = _block(steps[0], groups)
    for step in steps[1:]:
        total = _compose(_block(step, groups), total)
    return total.flatten(3)


def _block(step: Step, groups: int) -> Tensor:
    """(groups, outputs, inputs, *kernel) of a step, for each group of the layer; depthwise steps as diagonals."""
    g = step.geometry
    kernel = step.kernel.reshape(g.groups, g.group_outputs, g.group_inputs, *(g.kernel or (1,)))
    inner = g.groups // groups
    if inner == 1:
        return kernel
    split = kernel.reshape(groups, inner, *kernel.shape[1:])
    dense = kernel.new_zeros(groups, inner, kernel.shape[1], inner, kernel.shape[2], *kernel.shape[3:])
    index = torch.arange(inner)
    dense[:, index, :, index] = split.transpose(0, 1)
    return dense.reshape(groups, inner * kernel.shape[1], inner * kernel.shape[2], *kernel.shape[3:])


def _compose(last: Tensor, first: Tensor) -> Tensor:
    """The kernel of `last` after `first`: along each axis, one of the two has one tap."""
    axes = first.dim() - 3
    a, b = "abc"[:axes], "xyz"[:axes]
    product = torch.einsum(f"gtr{a},grs{b}->gts{a}{b}", last, first)
    sizes = [max(last.shape[3 + i], first.shape[3 + i]) for i in range(axes)]
    order = [3 + i if last.shape[3 + i] > 1 else 3 + axes + i for i in range(axes)]
    rest = [j for j in range(3, 3 + 2 * axes) if j not in order]
    return product.permute(0, 1, 2, *order, *rest).reshape(*product.shape[:3], *sizes)
