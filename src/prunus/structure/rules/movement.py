"""Operators that only move elements: run them on the labels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.structure.labels import along, compact, tighten, varying
from prunus.structure.layout import in_rows, same_columns
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

MOVES = (
    "view", "_unsafe_view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "permute", "transpose", "transpose_",
    "t", "t_", "numpy_T", "mT", "matrix_H", "adjoint", "swapaxes", "swapdims", "movedim", "moveaxis", "squeeze", "squeeze_",
    "unsqueeze", "unsqueeze_", "select", "narrow", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split",
    "unsafe_chunk", "unsafe_split_with_sizes", "hsplit", "vsplit", "unbind", "diagonal", "unfold",
    "atleast_1d", "atleast_2d", "atleast_3d", "ravel", "rot90",

)  # fmt: skip
IDENTITY = (
    "contiguous", "clone", "alias", "detach", "detach_", "to", "_to_copy", "type_as", "lift_fresh_copy", "lift_fresh", "lift",
    "positive", "dropout", "dropout_", "feature_dropout", "alpha_dropout", "native_dropout", "requires_grad_", "fill_",
    "zero_", "bernoulli_", "conj", "resolve_conj", "resolve_neg", "rand_like",
    "randn_like", "log_sigmoid", "_cast_Float", "float_power", "cpu", "cuda", "view.dtype", "rrelu", "softmax.int",
    "log_softmax.int", "_softmax", "_log_softmax", "special_softmax", "hardswish", "hardswish_", "isfinite", "isclose",
)  # fmt: skip
REASON = "is laid out in rows to which others are padded"
IDENTITY_NAMES = tuple(dict.fromkeys(name for name in IDENTITY if name not in ("view.dtype",)))


@rule(*MOVES)
def move(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return run.movement(node, a.self)


@rule("slice")
def take(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """A part of an axis; every n-th position is another one in each row, unless all rows keep the same."""
    if a.step != 1:
        for track in a.self.tracks:
            same_columns(run.labels, track, {a.dim % len(a.self.shape)}, node.name)
    return run.movement(node, a.self)


@rule("pixel_shuffle")
def to_space(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Channels become positions in space, which stay: all that make one new channel leave together."""
    shape, before = run.shape(node), a.self.shape
    axis = len(shape) - 3
    wide = (*shape[: axis + 1], a.upscale_factor**2, *before[axis + 1 :])
    rows = Value(wide, tuple(in_rows(run.labels, track, wide, node.name) for track in a.self.tracks))
    kept = run.hold(node, rows, {axis + 1, axis + 2, axis + 3}, "is a position in space for a pixel shuffle")
    return Value(shape, tuple(along(compact(track, varying(track)), varying(track), shape) for track in kept))


@rule("pixel_unshuffle")
def from_space(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Positions in space become channels: those that one channel makes, one for each offset, and offsets stay."""
    moved, shape = run.movement(node, a.self), run.shape(node)
    axis, offsets = len(shape) - 3, a.downscale_factor**2
    if not any(axis in varying(track) for track in moved.tracks):
        return moved
    made = run.labels.fresh(offsets)
    run.labels.hold(made, "is a position in space before a pixel unshuffle", node.name)
    track = along(made.repeat(shape[axis] // offsets), (axis,), shape)
    return Value(shape, (*moved.tracks, track))


@rule("channel_shuffle", "native_channel_shuffle")
def shuffle(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Laid out in rows, transposed and merged: in every row the same may leave."""
    shape = a.self.shape
    rows = (shape[0], a.groups, shape[1] // a.groups, *shape[2:])
    tracks = [in_rows(run.labels, track, rows, node.name, separable=True) for track in a.self.tracks]
    return Value(shape, tuple(tighten(track.transpose(1, 2).reshape(shape)) for track in tracks))


@rule(*IDENTITY_NAMES)
def identity(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """The result has the operand's shape and labels."""
    value = getattr(a, "self", None) or getattr(a, "input", None) or a.a
    result = Value(value.shape, value.tracks)
    meta = node.meta.get("val")
    return (result, Value(value.shape, value.tracks)) if isinstance(meta, (tuple, list)) else result


@rule("roll", "flip", "fliplr", "flipud")
def reorder(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Along axes on which the labels are constant nothing changes: work on the others only, to copy little."""

    def collapsed(track: Tensor) -> Tensor:
        axes = varying(track)
        for axis in range(track.dim()):
            if axis not in axes:
                track = track.narrow(axis, 0, min(1, track.shape[axis]))
        return track

    shape = a.self.shape
    small = Value(shape, tuple(collapsed(track) for track in a.self.tracks))
    if not small.tracks:
        return run.solid(node)
    axes = {x % len(shape) for x in getattr(a, "dims", ())} or set(range(len(shape)))
    if "roll" in str(node.target):
        for track in a.self.tracks:
            same_columns(run.labels, track, axes, node.name)
    results = [run._move(node, node.args[0], track).expand(shape) for track in small.tracks]
    return Value(shape, tuple(results))


@rule("expand", "expand_as", "broadcast_to", "repeat", "tile")
def expand(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """What is copied along an axis of size 1 gets labels there, so that the number of copies can shrink."""
    shape = run.shape(node)
    before = (1,) * (len(shape) - len(a.self.shape)) + tuple(a.self.shape)
    sizes = node.meta["val"].shape
    tracks = []
    for track in a.self.tracks:
        track = track.reshape(before)
        if any(new != old and old != 1 for new, old in zip(shape, before, strict=True)):
            repeats = [new // old for new, old in zip(shape, before, strict=True)]
            ones = [r if old != 1 else 1 for r, old in zip(repeats, before, strict=True)]
            track = tighten(track.repeat(ones))
        tracks.append(track.expand(shape))

    for axis, (new, old) in enumerate(zip(shape, before, strict=True)):
        if old == 1 and new > 1 and isinstance(sizes[axis], int):
            tracks.append(along(run.labels.fresh(new, axis), (axis,), shape))
    return Value(shape, tuple(tracks))


@rule("repeat_interleave.self_int")
def repeat_interleave(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """As a new axis of copies right after `dim`, then merged into it."""
    shape = run.shape(node)
    if a.dim is None:
        return run.movement(node, a.self)
    dim = a.dim % len(shape)
    old = a.self.shape[dim]
    wide = (*shape[:dim], old, shape[dim] // old, *shape[dim + 1 :])

    tracks = [track.unsqueeze(dim + 1).expand(wide).reshape(shape) for track in a.self.tracks]
    if wide[dim + 1] > 1:
        tracks.append(along(run.labels.fresh(wide[dim + 1]), (dim + 1,), wide).reshape(shape))

    return Value(shape, tuple(tighten(track) for track in tracks))


@rule("constant_pad_nd", "pad")
def pad(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """New labels for what is padded, along an axis on which the operand has labels."""
    shape = run.shape(node)
    widths = {len(shape) - 1 - i: (a.pad[2 * i], a.pad[2 * i + 1]) for i in range(len(a.pad) // 2)}
    mode = getattr(a, "mode", "constant")
    if mode != "constant" and a.self.varying() & set(widths):
        touched = run.hold(node, a.self, set(widths), f"is padded by {mode!r}")
        return Value(shape, tuple(track_on(track, shape) for track in touched))
    filled: dict[int, tuple[Tensor, Tensor]] = {}
    tracks = []
    for track in _ungridded(run, node, a.self, set(widths)):
        axes = varying(track)
        labels = compact(track, axes)
        for axis in axes:
            if axis not in widths:
                continue
            if axis not in filled:
                first, last = (max(width, 0) for width in widths[axis])
                filled[axis] = run.labels.fresh(first, 2 * axis), run.labels.fresh(last, 2 * axis + 1)
            before, after = widths[axis]
            core = labels[max(-before, 0) : labels.shape[0] - max(-after, 0)]
            labels = torch.cat([filled[axis][0], core, filled[axis][1]])

        tracks.append(along(labels, axes, shape))
    return Value(shape, tuple(tracks))


def _ungridded(run: Any, node: fx.Node, value: Value, padded: set[int]) -> list[Tensor]:
    """Tracks with at most one axis that is padded, and no other: of a grid, rows leave with what was padded to them."""
    tracks = []
    for track in value.tracks:
        touched = padded & set(varying(track))
        alone = not touched or len(varying(track)) == 1
        tracks += [track] if alone else run.hold(node, Value(value.shape, (track,)), touched, REASON)
    return tracks


def track_on(track: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The same track on a shape that differs only along axes on which it is constant."""
    axes = varying(track)
    return along(compact(track, axes), axes, shape)
