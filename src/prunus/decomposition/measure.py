"""What replaced layers really lose, and how long they take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunus.capture import Captured
from prunus.decomposition.moments import forward_all
from prunus.decomposition.sites import Site

__all__ = ["measured_errors", "slower"]

_BLOCK = 1 << 18  # values at a time
_TURNS = 7  # timed runs of a layer and of its replacement


def measured_errors(captured: Captured, chains: Mapping[str, nn.Module], data: Any) -> dict[str, float]:
    """Errors at the outputs of the layers on the data, or on the example inputs, with the original's inputs."""
    model = captured.model
    assert model is not None
    sums = {path: _Errors(model.get_submodule(path), chain) for path, chain in chains.items()}
    if sums:
        batches = [captured.run_inputs] if data is None else data
        forward_all(captured, {path: each.add for path, each in sums.items()}, batches)
    return {path: each.relative() for path, each in sums.items()}


@dataclass(eq=False)
class _Errors:
    layer: nn.Module
    chain: nn.Module
    squared: float = 0.0
    total: float = 0.0
    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.float64))

    def add(self, x: Tensor, wanted: Tensor) -> None:
        axis = -1 if isinstance(self.layer, nn.Linear) else 1 if x.dim() == self.layer.weight.dim() else 0  # type: ignore[union-attr, operator]
        rest = [i for i in range(wanted.dim()) if i != axis % wanted.dim()]
        self.squared += _squares(_wide(self.chain(x)).sub_(wanted))
        self.total += _squares(_wide(wanted))
        self.mean = self.mean + (wanted.sum(rest, dtype=torch.float64) if rest else wanted.double())
        self.count += wanted.numel() // wanted.shape[axis]

    def relative(self) -> float:
        if not self.count:
            return 0.0
        spread = self.total - float(self.mean.square().sum()) / self.count
        return (self.squared / spread) ** 0.5 if spread > 0 else float(self.squared > 0)


def _wide(x: Tensor) -> Tensor:
    """In single precision at least."""
    return x.float() if x.dtype.itemsize < 4 else x


def _squares(x: Tensor) -> float:
    return sum(float(part.square().sum(dtype=torch.float64)) for part in x.flatten().split(_BLOCK))


def slower(site: Site, chain: nn.Module) -> str | None:
    """Why a replacement is refused, where it is no faster than the layer on what one pass gives it."""
    g, weight = site.geometry, site.layer.weight
    rows, size = max(site.calls)
    x = torch.randn((rows, g.inputs, *size), device=weight.device).to(weight.dtype)
    times: dict[nn.Module, list[float]] = {site.layer: [], chain: []}
    with torch.no_grad():
        for turn in range(-1, _TURNS):
            for layer, took in times.items():
                began = time.perf_counter()
                _forward(layer, x)
                if x.device.type != "cpu":
                    torch.accelerator.synchronize(x.device)
                if turn >= 0:
                    took.append(1e3 * (time.perf_counter() - began))
    before, after = (statistics.median(took) for took in times.values())
    return None if after < before else f"would be no faster: {before:.2f} ms before, {after:.2f} ms after"


def _forward(layer: nn.Module, x: Tensor) -> Tensor:
    forward: Any = type(layer).forward
    return forward(layer, x)
