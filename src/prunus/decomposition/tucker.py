"""Three layers for one: fewer channels in, a small kernel, more channels out (Tucker-2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from prunus.decomposition.base import Curve, Method, register
from prunus.decomposition.geometry import Geometry
from prunus.decomposition.metric import Metric
from prunus.eigen import eigen

__all__ = ["Tucker", "hooi"]

_SWEEPS = 100
_EXACT = 4e-9  # of the kernel's energy, gained in a sweep
_ENOUGH = 1e-4  # likewise, where what follows is fitted anyway: trained kernels then lose 0.1% more at most
_SINGLE = 1e-6  # gains that single precision can tell
_STEP = 0.7  # how far a sweep goes on in the direction of the last one
_LADDER = 40  # ranks of each kind that a curve looks at


@register
@dataclass(frozen=True)
class Tucker(Method):
    r"""$W = C \times_{out} U_{out} \times_{in} U_{in}$ (Kim et al. 2016): pointwise, small kernel, pointwise.

    The bases come from higher-order orthogonal iteration, over whitened channels where moments are known; the small kernel and
    the outputs' basis are then the best ones for the output (reduced-rank regression). A rank that is full needs no layer.
    """

    name = "tucker"
    rank_names: ClassVar[tuple[str, ...]] = ("in", "out")

    def refusal(self, geometry: Geometry) -> str | None:
        if geometry.taps == 1:
            return "looks at one position only: use SVD"
        if geometry.group_inputs == 1 and geometry.group_outputs == 1:
            return "is depthwise: each channel has a kernel of its own"
        return None

    def full(self, geometry: Geometry) -> tuple[int, ...]:
        s, t, taps = geometry.group_inputs, geometry.group_outputs, geometry.taps
        return min(s, t * taps), min(t, s * taps)

    def layout(self, geometry: Geometry, ranks: tuple[Any, ...]) -> list[Geometry]:
        g, (a, b) = geometry, ranks
        inner_in, inner_out = a * g.groups, b * g.groups
        axes = tuple(range(len(g.kernel)))
        return [
            g.pointwise(g.inputs * (a < g.group_inputs), inner_in, g.groups),
            g.along(axes, inner_in, inner_out, g.groups),
            g.pointwise(inner_out * (b < g.group_outputs), g.outputs, g.groups),
        ]

    def fit(self, kernel: Tensor, geometry: Geometry, ranks: tuple[int, ...], metric: Metric) -> list[Tensor]:
        a, b = ranks
        groups, outputs, inputs, taps = kernel.shape
        white = metric.whiten_channels(kernel)
        u_out, u_in = hooi(white, a, b, _ENOUGH)
        if a == inputs:
            first = _eye(inputs, kernel).expand(groups, -1, -1)
        else:
            first = metric.unwhiten_inputs(u_in.mT)  # (groups, a, inputs)
        if metric.second is None:
            core = torch.einsum("gtsk,gas->gtak", kernel, first)
            small = torch.einsum("gtak,gtb->gbak", core, u_out)
        else:
            eye = _eye(taps, kernel)
            features = torch.einsum("gas,kl->gaksl", first, eye).reshape(groups, a * taps, inputs, taps)
            best = metric.regress(kernel, features)
            moment = metric.apply(features).flatten(2) @ features.flatten(2).mT
            u_out = eigen(best @ moment @ best.mT)[1][..., :b]
            if b == outputs:
                u_out = _eye(outputs, kernel).expand(groups, -1, -1)
            small = (u_out.mT @ best).reshape(groups, b, a, taps)
        if b == outputs and metric.second is None:
            small = torch.einsum("gtb,gbak->gtak", u_out, small)
        return [first[..., None], small, u_out[..., None]]

    def curve(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> Curve:
        white = metric.whiten_channels(kernel)
        u_out, u_in = _basis(white.flatten(2)), _basis(white.transpose(1, 2).flatten(2))
        core = torch.einsum("gtsk,gtb,gsa->gabk", white, u_out, u_in)
        kept = (core**2).sum((0, 3)).cumsum(0).cumsum(1).cpu().numpy()
        full_in, full_out = self.full(geometry)
        a, b = np.meshgrid(_ladder(full_in), _ladder(full_out), indexing="ij")
        total = kept[-1, -1] or 1.0
        lost = 1 - kept[a.ravel() - 1, b.ravel() - 1] / total
        return Curve(np.stack([a.ravel(), b.ravel()], 1), np.clip(lost, 0, 1))

    def unfoldings(self, kernel: Tensor, geometry: Geometry, metric: Metric) -> list[Tensor]:
        white = metric.whiten_channels(kernel)
        return [white.transpose(1, 2).flatten(2), white.flatten(2)]


def hooi(kernel: Tensor, rank_in: int, rank_out: int, tolerance: float = _EXACT) -> tuple[Tensor, Tensor]:
    """Bases (groups, outputs, rank_out) and (groups, inputs, rank_in) that keep most of the kernel's energy.

    Args:
        kernel: (groups, outputs, inputs, taps) float64.
        rank_in, rank_out: numbers of basis vectors.
        tolerance: share of the kernel's energy; done when a sweep gains no more. What single precision can tell is done in
            single precision, up to a last sweep.
    """
    if rank_in == kernel.shape[2] or rank_out == kernel.shape[1]:
        # one basis is the whole space: the other is the best one already
        u_out = _basis(kernel.flatten(2))[..., :rank_out]
        return u_out, _basis(kernel.transpose(1, 2).flatten(2))[..., :rank_in]
    if tolerance < _SINGLE:
        return _swept(kernel, rank_in, rank_out, tolerance)
    largest = (
        float(torch.linalg.vector_norm(kernel, float("inf"))) or 1.0
    )  # squares of small numbers must not vanish
    single = torch.div(kernel, largest, out=torch.empty_like(kernel, dtype=torch.float32))
    _, u_in = _swept(single, rank_in, rank_out, tolerance)
    u_out = _basis(_narrowed(kernel, 2, u_in.to(kernel.dtype)).flatten(2))[..., :rank_out]
    u_in = _basis(_narrowed(kernel, 1, u_out).transpose(1, 2).flatten(2))[..., :rank_in]
    return u_out, u_in


def _swept(kernel: Tensor, rank_in: int, rank_out: int, tolerance: float) -> tuple[Tensor, Tensor]:
    by_output = kernel.transpose(2, 3).contiguous()  # (groups, outputs, taps, inputs)
    by_input = kernel.permute(0, 2, 3, 1).contiguous()  # (groups, inputs, taps, outputs)
    u_in = _basis(by_input.flatten(2))[..., :rank_in]
    u_out = u_in
    total = float(torch.linalg.vector_norm(kernel)) ** 2 or 1.0
    before, ahead, step = -1.0, u_in, _STEP
    for _ in range(_SWEEPS):
        u_out = _basis((by_output @ ahead[:, None]).flatten(2))[..., :rank_out]
        small = (by_input @ u_out[:, None]).flatten(2)
        values, vectors = eigen(small @ small.mT)
        last, u_in = u_in, vectors[..., :rank_in]
        kept = float(values[..., :rank_in].sum())
        gain = (kept - before) / total
        if gain < 0:
            step = 0.0  # went too far
        elif gain <= tolerance:
            break
        before = kept
        # go on in the direction in which the basis has moved
        ahead = u_in + step * (u_in - last @ (last.mT @ u_in))
    return u_out, u_in


def _narrowed(kernel: Tensor, axis: int, basis: Tensor) -> Tensor:
    """The kernel seen in a basis (groups, size, rank) of its axis 1 or 2."""
    equation = "gtsk,gtb->gbsk" if axis == 1 else "gtsk,gsa->gtak"
    return torch.einsum(equation, kernel, basis)


def _basis(matrix: Tensor) -> Tensor:
    """Left singular vectors of (groups, rows, columns), those of the largest values first."""
    return eigen(matrix @ matrix.mT)[1]


def _eye(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)


def _ladder(full: int) -> np.ndarray:
    """Ranks up to the full one: all, or ever wider apart."""
    if full <= _LADDER:
        return np.arange(1, full + 1)
    return np.unique(np.round(np.geomspace(1, full, 2 * _LADDER)).astype(int))[-_LADDER:]
