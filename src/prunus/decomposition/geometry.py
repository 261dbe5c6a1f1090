"""What kind of layer it is: all that says how a kernel is applied, apart from the kernel's numbers."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CONVS", "LAYERS", "TRANSPOSED", "Geometry", "dense_weight", "geometry_of", "kernel_of"]

CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, type[nn.Module]] = {
    1: nn.ConvTranspose1d,
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, *CONVS.values(), *TRANSPOSED.values())


@dataclass(frozen=True)
class Geometry:
    """How a layer applies its kernel.

    Numbers of channels may also be arrays, for the costs of many choices of ranks at once.

    Attributes:
        kind: "linear", "conv" or "transposed".
        inputs, outputs: channels, of all groups together.
        groups: groups of a convolution.
        kernel, stride, dilation: one number for each spatial axis; empty for linear layers.
        padding: likewise, or "same".
        output_padding: of transposed convolutions.
        padding_mode: as `torch.nn` calls it.
    """

    kind: str
    inputs: Any
    outputs: Any
    groups: Any = 1
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    output_padding: tuple[int, ...] = ()
    padding_mode: str = "zeros"

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel)

    @property
    def group_inputs(self) -> Any:
        return self.inputs // self.groups

    @property
    def group_outputs(self) -> Any:
        return self.outputs // self.groups

    @property
    def weights(self) -> Any:
        """Number of weights, without a bias."""
        return self.inputs * self.group_outputs * self.taps

    def pointwise(self, inputs: Any, outputs: Any, groups: Any) -> Geometry:
        """A layer that looks at one position only."""
        axes = len(self.kernel)
        if not axes:
            return Geometry("linear", inputs, outputs)
        one, zero = (1,) * axes, (0,) * axes
        return Geometry("conv", inputs, outputs, groups, one, one, zero, one, zero)

    def along(self, axes: tuple[int, ...], inputs: Any, outputs: Any, groups: Any) -> Geometry:
        """A layer that does what this one does along some spatial axes, and nothing along the others."""

        def only(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if i in axes else neutral for i, v in enumerate(values))

        return dataclasses.replace(
            self,
            inputs=inputs,
            outputs=outputs,
            groups=groups,
            kernel=only(self.kernel, 1),
            stride=only(self.stride, 1),
            dilation=only(self.dilation, 1),
            padding=self.padding if isinstance(self.padding, str) else only(self.padding, 0),
            output_padding=only(self.output_padding, 0),
        )

    def output_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Spatial sizes that come out when these go in."""
        if self.padding == "same":
            return size
        found = []
        for i, n in enumerate(size[-len(self.kernel) :] if self.kernel else ()):
            pad, reach = int(self.padding[i]), self.dilation[i] * (self.kernel[i] - 1)
            if self.kind == "transposed":
                found.append((n - 1) * self.stride[i] - 2 * pad + reach + self.output_padding[i] + 1)
            else:
                found.append((n + 2 * pad - reach - 1) // self.stride[i] + 1)
        return tuple(found)

    def macs(self, size: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
        """Multiply-accumulates for one sample (one row, of a linear layer) of this spatial size, and the size that comes out."""
        result = self.output_size(size)
        positions = math.prod(size if self.kind == "transposed" else result)
        return self.weights * positions, result

    def before(self) -> list[tuple[int, int]]:
        """Padding in front and behind along each axis, of a convolution."""
        if self.padding == "same":
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        return [(int(pad), int(pad)) for pad in self.padding]


def geometry_of(layer: nn.Module) -> Geometry:
    """The geometry of one of `LAYERS`."""
    if isinstance(layer, nn.Linear):
        return Geometry("linear", layer.in_features, layer.out_features)
    given: Any = layer
    transposed = isinstance(layer, tuple(TRANSPOSED.values()))
    padding = given.padding
    if isinstance(padding, str):
        padding = "same" if padding == "same" else (0,) * len(given.kernel_size)
    return Geometry(
        "transposed" if transposed else "conv",
        given.in_channels,
        given.out_channels,
        given.groups,
        tuple(given.kernel_size),
        tuple(given.stride),
        padding if isinstance(padding, str) else tuple(padding),
        tuple(given.dilation),
        tuple(given.output_padding),
        given.padding_mode,
    )


def kernel_of(weight: Tensor, geometry: Geometry) -> Tensor:
    """A layer's weight as (groups, outputs, inputs, taps) in float64."""
    weight = weight.detach().to(torch.float64)
    groups, taps = geometry.groups, geometry.taps
    if geometry.kind == "transposed":
        split = weight.reshape(groups, geometry.group_inputs, geometry.group_outputs, taps)
        return split.transpose(1, 2).contiguous()
    return weight.reshape(groups, geometry.group_outputs, geometry.group_inputs, taps)


def dense_weight(kernel: Tensor, geometry: Geometry) -> Tensor:
    """The weight of a layer from (groups, outputs, inputs, taps): what `kernel_of` undoes."""
    if geometry.kind == "transposed":
        kernel = kernel.transpose(1, 2)
        return kernel.reshape(geometry.inputs, geometry.group_outputs, *geometry.kernel).contiguous()
    return kernel.reshape(geometry.outputs, geometry.group_inputs, *geometry.kernel).contiguous()
