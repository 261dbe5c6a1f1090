"""The shape of a value between two blocks, and small things that all blocks use."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.property.choices import Pick

WIDTHS = (4, 6, 8, 12)


@dataclass(frozen=True)
class Form:
    """A value without its batch axis: `map` (C, *size), `tokens` (T, C) with size (T,), `vector` (C) with size ()."""

    kind: str
    channels: int
    size: tuple[int, ...] = ()

    def wide(self, channels: int) -> "Form":
        return replace(self, channels=channels)

    @property
    def axis(self) -> int:
        """The axis of the channels in the batched value."""
        return -1 if self.kind == "tokens" else 1


Made = tuple[nn.Module, Form]
Maker = Callable[..., Made]


class Do(nn.Module):
    """A function as a module; what it calls (modules, parameters) are given by name and handed to it."""

    def __init__(self, name: str, function: Callable[..., Tensor], **parts: Any) -> None:
        super().__init__()
        self.called = name
        self._function = function
        for key, part in parts.items():
            setattr(self, key, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self._function(self, x)

    def extra_repr(self) -> str:
        sizes = [
            f"{key}={tuple(value.shape)}" for key, value in self._parameters.items() if value is not None
        ]
        return ", ".join([self.called, *sizes])


def width(pick: Pick) -> int:
    return pick.one_of(WIDTHS)


def divisors(*numbers: int) -> list[int]:
    common = math.gcd(*numbers)
    return [d for d in range(1, common + 1) if common % d == 0]


def project(form: Form, out: int) -> nn.Module:
    """The plainest layer that makes `out` channels."""
    if form.kind == "map":
        return CONVS[len(form.size)](form.channels, out, 1)
    return nn.Linear(form.channels, out)


CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORMS = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@torch.no_grad()
def randomize(model: nn.Module, seed: int) -> nn.Module:
    """Numbers that hide nothing: no zeros, no ones, every scale and shift different, activations of size one."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            uniform(parameter, *((0.5, 1.5) if name.endswith("weight") else (-0.5, 0.5)))
        else:
            bound = (3 / max(1, parameter[0].numel())) ** 0.5
            uniform(parameter, -bound, bound)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            uniform(buffer, -0.5, 0.5)
        elif name.endswith("running_var"):
            uniform(buffer, 0.5, 1.5)
    return model
