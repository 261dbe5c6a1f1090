"""Fourier transforms, and numbers of two parts: axes that are not transformed pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.rules.reduction import spread
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

KINDS = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
TRANSFORMS = tuple(f"fft_{kind}{suffix}" for kind in KINDS for suffix in ("", "2", "n"))


@rule(*TRANSFORMS, "fft_fftshift", "fft_ifftshift", "_fft_c2c", "_fft_r2c", "_fft_c2r")
def transform(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Every result depends on all positions along the transformed axes: those stay."""
    shape = run.shape(node)
    kept = run.hold(node, a.self, _axes(a), f"is a position along which {node.target} transforms")
    return Value(shape, tuple(spread(track, shape) for track in kept))


def _axes(a: SimpleNamespace) -> set[int]:
    rank = len(a.self.shape)
    if isinstance(a.dim, int):
        return {a.dim % rank}
    if a.dim:
        return {axis % rank for axis in a.dim}
    sizes = getattr(a, "s", None)
    return set(range(rank - len(sizes) if sizes else 0, rank))


@rule("view_as_complex", "view_as_complex_copy")
def to_complex(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    last = len(a.self.shape) - 1
    kept = run.hold(node, a.self, {last}, "is the real or the imaginary part of a number")
    return Value(a.self.shape[:-1], tuple(track.select(last, 0) for track in kept))


@rule("view_as_real", "view_as_real_copy")
def to_real(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = run.shape(node)
    return Value(shape, tuple(track.unsqueeze(-1).expand(shape) for track in a.self.tracks))


@rule("real", "imag")
def part(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """One of both parts, where the number is."""
    return Value(a.self.shape, a.self.tracks)


@rule("complex", "polar")
def of_parts(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Real and imaginary part, or magnitude and angle, of the same numbers."""
    return run.pointwise(node, [v for v in vars(a).values() if isinstance(v, Value)])
