"""Convolutions: contractions over channels, position by position in space."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.labels import compact, varying
from prunus.structure.layout import in_rows
from prunus.structure.rules.contraction import add_bias, contract, produce
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

SPACE = "xyz"


@rule("conv1d", "conv2d", "conv3d")
def conv(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return _convolve(run, node, a, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return _convolve(run, node, a, transposed=True)


@rule("convolution", "_convolution")
def convolution(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return _convolve(run, node, a, transposed=bool(a.transposed))


@rule("torchvision::deform_conv2d")
def deformed(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """A convolution at shifted places: the shifts, and how much each counts, stay."""
    for value in (a.offset, a.mask):
        run.hold(node, value, set(range(1, len(value.shape))), "says where a deformable convolution looks")
    x = Value(
        a.input.shape, tuple(run.hold(node, a.input, {2, 3}, "is a position in space for a convolution"))
    )
    if a.offset_groups > 1:
        for track in _grouped(run, node, x, 1, a.offset_groups).tracks:
            shifts = run.labels.project(track, (1,), node.name)
            run.labels.hold(shifts, "shares its shifts in a deformable convolution", node.name)
    plain = SimpleNamespace(input=x, weight=a.weight, bias=a.bias, groups=a.groups)
    return _convolve(run, node, plain, transposed=False)


def _convolve(run: Any, node: fx.Node, a: SimpleNamespace, transposed: bool) -> Value:
    shape, weight, groups = run.shape(node), a.weight, a.groups
    n = len(weight.shape) - 2
    first = len(a.input.shape) - n  # of the axes of space
    loose = _loose(a, n)
    held = {first + i for i in range(n) if i not in loose}
    x = Value(a.input.shape, tuple(run.hold(node, a.input, held, "is a position in space for a convolution")))
    kernel = run.hold(node, weight, set(range(2, n + 2)), "is a position in a kernel")
    produce(run, kernel, 1 if transposed else 0)
    kernel = _at_origin(Value(weight.shape, tuple(kernel)), range(2, n + 2))
    passed = [i for i in sorted(loose) if first + i in x.varying()]
    # elsewhere labels do not vary in space: contract at one position
    point = _at_origin(x, [first + i for i in range(n) if i not in passed])
    batched = first == 2
    if not batched:
        point = Value((1, *point.shape), tuple(t.unsqueeze(0) for t in point.tracks))
    spots = (x.shape if transposed else shape)[-n:]
    macs = math.prod(weight.shape[2:]) * math.prod(spots[i] for i in range(n) if i not in passed)
    free = "".join(SPACE[i] for i in passed)
    if groups == 1:
        names = "kn" if transposed else "nk"
        result = contract(run, node, point, "bk" + free, kernel, names, "bn" + free, macs=macs)
    else:
        rows = _grouped(run, node, point, 1, groups)
        names = "gkn" if transposed else "gnk"
        kernel = _grouped(run, node, kernel, 0, groups)
        result = contract(run, node, rows, "bgk" + free, kernel, names, "bgn" + free, macs=macs)
        flat = (result.shape[0], shape[-n - 1], *(shape[i - n] for i in passed))
        result = Value(flat, tuple(t.reshape(flat) for t in result.tracks))
    tracks = result.tracks if batched else tuple(t[0] for t in result.tracks)
    spread = (*shape[: len(shape) - n], *(shape[i - n] if i in passed else 1 for i in range(n)))
    value = Value(shape, tuple(t.reshape(spread).expand(shape) for t in tracks))
    return add_bias(run, node, value, _bias(a.bias, n))


def _loose(a: SimpleNamespace, n: int) -> set[int]:
    """Axes of space along which every position is by itself: a kernel of size 1 that neither steps nor pads."""

    def at(name: str, i: int, default: int) -> int:
        given = getattr(a, name, default)
        if isinstance(given, str):  # the padding "same" or "valid": none for such a kernel
            return default
        return given if isinstance(given, int) else given[i] if len(given) > 1 else given[0]

    return {
        i
        for i in range(n)
        if a.weight.shape[2 + i] == 1
        and at("stride", i, 1) == 1
        and at("padding", i, 0) == 0
        and at("output_padding", i, 0) == 0
    }


def _at_origin(value: Value, axes: Any) -> Value:
    """The first position along axes on which no label varies; they are dropped."""
    index = tuple(0 if i in axes else slice(None) for i in range(len(value.shape)))
    shape = tuple(size for i, size in enumerate(value.shape) if i not in axes)
    return Value(shape, tuple(t[index] for t in value.tracks))


def _grouped(run: Any, node: fx.Node, value: Value, axis: int, groups: int) -> Value:
    shape = (*value.shape[:axis], groups, value.shape[axis] // groups, *value.shape[axis + 1 :])
    return Value(shape, tuple(in_rows(run.labels, track, shape, node.name) for track in value.tracks))


def _bias(bias: Value | None, n: int) -> Value | None:
    if bias is None:
        return None
    shape = (*bias.shape, *(1,) * n)
    return Value(shape, tuple(compact(t, (0,)).reshape(shape) for t in bias.tracks if varying(t)))
