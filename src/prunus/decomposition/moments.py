"""Second moments of what layers meet, summed up while calibration data runs through the model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
from prunus.inputs import as_inputs

__all__ = ["BUDGET_BYTES", "Sums", "collect_moments", "forward_all"]

BUDGET_BYTES = 1 << 30  # of sums at a time; layers beyond it get another pass
PATCH_LIMIT = 4608  # numbers in a patch up to which moments of whole patches are collected
_CHUNK_BYTES = 1 << 27  # of patches laid out at once
_EXACT = 1200  # numbers in a patch up to which sums are kept in double precision


@dataclass(eq=False)
class Sums:
    """Running sums over what one layer meets.

    Attributes:
        geometry: of the layer.
        second: (groups, n, n) sum of products.
        first: (groups, n) sum.
        count: rows summed.
    """

    geometry: Geometry
    second: Tensor | None = None
    first: Tensor | None = None
    count: int = 0

    @property
    def whole(self) -> bool:
        """Whether patches are summed, not channels alone."""
        return self.geometry.group_inputs * self.geometry.taps <= PATCH_LIMIT

    @property
    def bytes(self) -> int:
        size = self.geometry.group_inputs * (self.geometry.taps if self.whole else 1)
        return self.geometry.groups * size * size * (8 if size <= _EXACT else 4)

    def add(self, x: Tensor) -> None:
        """Sum up an input of the layer, in pieces where patches of all of it would be large."""
        g = self.geometry
        if self.whole and g.taps > 1:
            each = x[:1].numel() * g.taps * 4 or 1
            pieces = x.split(max(1, _CHUNK_BYTES // each)) if x.dim() == 2 + len(g.kernel) else (x,)
            rows = (patch_rows(piece.float(), g) for piece in pieces)
        else:
            rows = iter([channel_rows(x.float(), g)])
        for part in rows:
            precision = torch.float64 if part.shape[-1] <= _EXACT else torch.float32
            second, first = (part.mT @ part).to(precision), part.sum(1, dtype=torch.float64)
            self.second = second if self.second is None else self.second.add_(second)
            self.first = first if self.first is None else self.first.add_(first)
            self.count += part.shape[1]

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
    """Run the model on all batches, and hand the input of each call of the named layers to its function.

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
        use((args[0] if args else kwargs["input"]).detach())

    return hook
