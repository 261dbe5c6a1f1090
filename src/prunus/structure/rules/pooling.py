"""Pooling and resizing: channels pass, positions in space stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.rules.reduction import spread
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

POOLS = tuple(
    f"{kind}_pool{n}d{suffix}"
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max", "_adaptive_avg", "lp", "fractional_max")
    for n in (1, 2, 3)
    for suffix in ("", "_with_indices")
)
RESIZES = tuple(
    f"{prefix}upsample_{kind}"
    for prefix in ("", "_")
    for kind in (
        "nearest1d", "nearest2d", "nearest3d", "nearest_exact1d", "nearest_exact2d", "nearest_exact3d", "linear1d", "bilinear2d",
        "bicubic2d", "trilinear3d", "bilinear2d_aa", "bicubic2d_aa",
    )
)  # fmt: skip
PADS = tuple(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))


def spatial(run: Any, node: fx.Node, value: Value, first: int = 2) -> list[Any]:
    """Tracks of a map whose axes from `first` on are positions in space."""
    axes = set(range(min(first, len(value.shape)), len(value.shape)))
    return run.hold(node, value, axes, f"is a position in space for {node.target}")


@rule(*POOLS, *RESIZES, *PADS)
def pool(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    value = getattr(a, "self", None) or a.input
    digits = [c for c in str(node.target) if c in "123"]
    first = len(value.shape) - int(digits[0]) if digits else 2
    tracks = spatial(run, node, value, first)
    shapes = run.shapes(node)
    if isinstance(shapes[0], tuple):
        return tuple(Value(s, tuple(spread(t, s) for t in tracks)) for s in shapes)
    return Value(shapes, tuple(spread(t, shapes) for t in tracks))


@rule("max_unpool2d", "max_unpool3d")
def unpool(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Back to where the maxima were: the places are those of the same channels."""
    shape, digits = run.shape(node), [c for c in str(node.target) if c in "23"]
    first = len(shape) - int(digits[0])
    parts = [Value(a.self.shape, tuple(spatial(run, node, value, first))) for value in (a.self, a.indices)]
    tracks = run.meet(node, a.self.shape, *(part for part in parts if part.tracks))
    return Value(shape, tuple(spread(track, shape) for track in tracks))


@rule("torchvision::roi_align", "torchvision::roi_pool")
def regions(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Parts of maps, for each region: channels pass."""
    run.hold(node, a.rois, set(range(len(a.rois.shape))), "is a region of a map")
    tracks = run.hold(node, a.input, {0, 2, 3}, f"is a position in space for {node.target}")
    shapes = run.shapes(node)
    if isinstance(shapes[0], tuple):
        return tuple(Value(shape, tuple(spread(t, shape) for t in tracks)) for shape in shapes)
    return Value(shapes, tuple(spread(t, shapes) for t in tracks))


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sample(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    run.hold(node, a.grid, set(range(len(a.grid.shape))), "is a coordinate of sampling")
    shape = run.shape(node)
    return Value(shape, tuple(spread(t, shape) for t in spatial(run, node, a.input)))
