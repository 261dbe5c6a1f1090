"""Second moments of what layers meet, summed up while calibration data runs through the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.capture import Captured
from prunus.capture.preserve import buffers_kept, left_as_found
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.decomposition.patches import channel_rows, patch_rows
from prunus.errors import CaptureError
from prunus.evidence.batches import checked_batches
from prunus.gram import gram
from prunus.inputs import as_inputs

__all__ = ["BUDGET_BYTES", "Sums", "collect_moments", "forward_all"]

BUDGET_BYTES = 1 << 30  # of sums at a time; layers beyond it get another pass
PATCH_LIMIT = 4608  # numbers in a patch up to which moments of whole patches are collected
_ROWS = 16384  # patches of a call that are looked at, or
_ROWS_PER_NUMBER = 16  # for each number in a patch, if that is more
_EXACT = 1200  # numbers in a patch up to which sums are kept in double precision


@dataclass(eq=False)
class Sums:
    """Running sums over what one layer meets.

    Attributes:
        geometry: of the layer.
        second: (groups, n, n) sum of products.
        first: (groups, n) sum.
        count: rows summed.
        generator: for drawing patches.
    """

    geometry: Geometry
    second: Tensor | None = None
    first: Tensor | None = None
    count: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def whole(self) -> bool:
        """Whether patches are summed, not channels alone."""
        return self.geometry.group_inputs * self.geometry.taps <= PATCH_LIMIT

    @property
    def bytes(self) -> int:
        size = self.geometry.group_inputs * (self.geometry.taps if self.whole else 1)
        return self.geometry.groups * size * size * (8 if size <= _EXACT else 4)

    def add(self, x: Tensor, output: Tensor) -> None:
        """Sum up an input of the layer; of very many patches, some that are drawn."""
        g = self.geometry
        if self.whole and g.taps > 1:
            most = max(_ROWS, _ROWS_PER_NUMBER * g.group_inputs * g.taps)
            rows = patch_rows(x.float(), g, most, self.generator)
        else:
            rows = channel_rows(x.float(), g)
        precision = torch.float64 if rows.shape[-1] <= _EXACT else torch.float32
        second, first = gram(rows.mT).to(precision), rows.sum(1, dtype=torch.float64)
        self.second = second if self.second is None else self.second.add_(second)
        self.first = first if self.first is None else self.first.add_(first)
        self.count += rows.shape[1]

    def metric(self, centered: bool) -> Metric:
        """Moments as a metric; plain where the layer was never called."""
        if self.second is None or self.first is None or not self.count:
            return Metric()
        return Metric((self.second / self.count).cpu(), (self.first / self.count).cpu(), centered)


def collect_moments(
    captured: Captured, layers: Mapping[str, Geometry], data: Iterable[Any]
) -> Iterable[tuple[str, Sums]]:
    """Sums of each layer, in passes over the data that each stay within the memory for sums.

    Args:
        captured: whose model runs.
        layers: module path -> geometry.
        data: see `prunus.evidence.batches.checked_batches`; read once for each pass.

    Yields:
        Path and sums; they are freed when the next pass begins.

    Raises:
        ConfigError: the data does not fit.
        CaptureError: the model fails on it.
    """
    passes: list[dict[str, Sums]] = [{}]
    room = BUDGET_BYTES
    for path, geometry in layers.items():
        sums = Sums(geometry)
        if sums.bytes > room and passes[-1]:
            passes.append({})
            room = BUDGET_BYTES
        room -= sums.bytes
        passes[-1][path] = sums
    for wanted in passes:
        forward_all(captured, {path: sums.add for path, sums in wanted.items()}, data)
        yield from wanted.items()
        wanted.clear()


def forward_all(captured: Captured, taps: Mapping[str, Any], data: Iterable[Any]) -> None:
    """Run the model on all batches, and hand input and output of each call of the named layers to its function.

    Raises:
        ConfigError: the data does not fit the model.
        CaptureError: the model fails on it.
    """
    model = captured.model
    assert model is not None
    with left_as_found(model), buffers_kept(model), torch.no_grad():
        for path, use in taps.items():
            model.get_submodule(path).register_forward_hook(_handing(use), with_kwargs=True)
        for number, batch in enumerate(checked_batches(captured, data)):
            args, kwargs = pytree.tree_unflatten(list(batch.leaves), captured.in_spec)
            inputs = as_inputs(batch.given) if not batch.leaves else None
            try:
                model(*args, **kwargs) if inputs is None else model(*inputs.args, **inputs.kwargs)
            except Exception as error:
                raise CaptureError(
                    f"the model fails on batch {number} of data: {type(error).__name__}: {error}"
                ) from error


def _handing(use: Any) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        use((args[0] if args else kwargs["input"]).detach(), output.detach())

    return hook
