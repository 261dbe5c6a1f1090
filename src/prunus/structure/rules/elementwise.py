"""Elementwise operators that torch does not tag as such, or that carry extra arguments."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.labels import compact, varying
from prunus.structure.layout import moved
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

EXTRA = (
    "floor_divide", "floor_divide_", "true_divide", "divide", "multiply", "subtract", "add_relu", "rsub.Tensor", "fmod.Tensor", "square",
    "square_", "__and__", "__or__", "__xor__",
    "where.ScalarOther", "where.ScalarSelf", "where.Scalar", "addcmul_", "greater", "less", "greater_equal",
    "less_equal", "not_equal", "bitwise_not", "arctan2", "isnan", "isinf", "nan_to_num", "clip", "clip_", "hardshrink", "softshrink",
    "absolute", "negative", "special_expit", "sigmoid_", "tanh_", "pow_", "masked_fill_", "masked_fill",
)  # fmt: skip


def _register() -> None:
    import torch

    from prunus.structure.rules.registry import RULES, overloads

    for name in EXTRA:
        for op in overloads(name):
            if op not in RULES and torch.Tag.pointwise not in op.tags:
                RULES[op] = lambda run, node, a: run.pointwise(
                    node, [v for v in vars(a).values() if isinstance(v, Value)]
                )


_register()


@rule("copy_", "copy")
def copy(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Write `src` over `self`, maybe through a view: both carry the same labels from now on."""
    return Value(a.self.shape, tuple(run.meet(node, a.self.shape, a.self, a.src)))


@rule("slice_scatter", "select_scatter")
def scatter_view(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """`self` with a slice overwritten: relate the slice of the labels to those of what is written."""
    import torch

    def part(track: Any) -> Any:
        if hasattr(a, "index"):
            return track.select(a.dim, a.index)
        return torch.ops.aten.slice.Tensor(track, a.dim, a.start, a.end, a.step)

    window = Value(a.src.shape, tuple(part(track) for track in a.self.tracks))
    run.meet(node, a.src.shape, window, a.src)
    return Value(a.self.shape, a.self.tracks)


@rule("prelu", "_prelu_kernel")
def prelu(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """One slope for all, or one per channel (axis 1)."""
    shape = run.shape(node)
    return Value(shape, tuple(run.meet(node, shape, a.self, on_axis(a.weight, 1, shape))))


@rule("glu")
def glu(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """The first half of an axis times the gate of the second: index i of one half goes with index i of the other."""
    shape = run.shape(node)
    dim = a.dim % len(shape)
    halves = []
    for start in (0, shape[dim]):
        parts = [moved(run.labels, t, t.narrow(dim, start, shape[dim]), node.name) for t in a.self.tracks]
        halves.append(Value(shape, tuple(parts)))
    return Value(shape, tuple(run.meet(node, shape, *halves)))


def on_axis(vector: Value | None, axis: int, shape: tuple[int, ...]) -> Value:
    """A one-dimensional value as it is broadcast along one axis of `shape`."""
    if vector is None:
        return Value((1,) * len(shape))
    view = [1] * len(shape)
    view[axis] = vector.shape[0]
    tracks = []
    for track in vector.tracks:
        if varying(track):
            tracks.append(compact(track, (0,)).reshape(view))
    return Value(tuple(view), tuple(tracks))
