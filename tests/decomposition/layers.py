"""Layers of every kind, and inputs for them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def grid() -> list[dict[str, Any]]:
    """Settings of convolutions: every value of each, in all pairs of two settings."""
    values: dict[str, list[Any]] = {
        "axes": [1, 2, 3],
        "kernel_size": [3, 1, 2, "mixed"],
        "stride": [1, 2],
        "padding": [0, 1, "same"],
        "dilation": [1, 2],
        "groups": [1, 2],
        "padding_mode": ["zeros", "reflect", "replicate", "circular"],
        "bias": [True, False],
        "transposed": [False, True],
    }
    base = {name: options[0] for name, options in values.items()} | {"axes": 2}
    found = []
    for one, two in itertools.combinations(values, 2):
        for a, b in itertools.product(values[one], values[two]):
            case = {**base, one: a, two: b}
            if case not in found and _possible(case):
                found.append(case)
    return found


def _possible(case: dict[str, Any]) -> bool:
    if case["padding"] == "same" and (case["stride"] != 1 or case["transposed"]):
        return False
    return not (case["transposed"] and case["padding_mode"] != "zeros")


def layer_of(case: dict[str, Any], inputs: int = 6, outputs: int = 8) -> nn.Module:
    """The layer of a case in float64, with weights of its own."""
    settings = dict(case)
    axes, transposed = settings.pop("axes"), settings.pop("transposed")
    if settings["kernel_size"] == "mixed":
        settings["kernel_size"] = (3, 2, 1)[:axes]
    if transposed:
        settings.pop("padding_mode")
        settings["output_padding"] = max(settings["stride"], settings["dilation"]) - 1
    kind = (TRANSPOSED if transposed else CONV)[axes]
    return kind(inputs, outputs, dtype=torch.float64, **settings)


def input_for(layer: nn.Module, batch: int = 2, size: int = 7) -> Tensor:
    """(batch, channels, size...) of noise."""
    if isinstance(layer, nn.Linear):
        return torch.randn(batch, 5, layer.in_features, dtype=torch.float64)
    given: Any = layer
    return torch.randn(batch, given.in_channels, *[size] * len(given.kernel_size), dtype=torch.float64)
