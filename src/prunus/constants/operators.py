"""What operators make of bounds. All others are taken to make anything."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture import concrete, size_of
from prunus.constants.bounds import INF, Bounds, plus, product, scaled, small, times
from prunus.evidence.facing import kind_of

__all__ = ["RULES", "is_mixing", "mixed", "pads"]

Rule = Callable[[fx.Node, SimpleNamespace], Bounds]
RULES: dict[str, Rule] = {}
_RISING = (
    "relu relu6 hardtanh sigmoid tanh elu selu celu softplus clamp clamp_min clamp_max hardsigmoid exp erf atan log_sigmoid "
    "leaky_relu"
)
_MIXING = ("max_pool", "avg_pool", "adaptive_", "upsample_", "mean", "amax", "amin")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what operators of these names do, and their forms in place."""

    def add(function: Rule) -> Rule:
        RULES.update({name + end: function for name in names for end in ("", "_")})
        return function

    return add


def is_mixing(node: fx.Node) -> bool:
    """Whether each element of the result lies between elements of the operand."""
    return kind_of(node).startswith(_MIXING)


def _plain(value: Any) -> Any:
    return value if isinstance(value, Bounds) else Bounds.exact(torch.as_tensor(value))


@rule(*_RISING.split())
def rising(node: fx.Node, a: SimpleNamespace) -> Bounds:
    options = [value for name, value in vars(a).items() if name != "self"]
    if any(isinstance(value, Bounds | Tensor) for value in options) or (
        kind_of(node).startswith("leaky") and float(a.negative_slope) < 0
    ):
        raise NotImplementedError("not known to rise")
    target: Any = getattr(torch.ops.aten, kind_of(node).removesuffix("_"))
    ends = [target(small(end), *options) for end in (a.self.low, a.self.high)]
    return Bounds(*ends).spread(size_of(node))


@rule("add", "sub")
def add(node: fx.Node, a: SimpleNamespace) -> Bounds:
    sign = -1 if kind_of(node).startswith("sub") else 1
    one, other = _plain(a.self), scaled(_plain(a.other), sign * float(getattr(a, "alpha", 1)))
    return plus(_small(one), _small(other)).spread(size_of(node))


@rule("neg")
def neg(node: fx.Node, a: SimpleNamespace) -> Bounds:
    return scaled(a.self, -1)


@rule("mul", "div")
def mul(node: fx.Node, a: SimpleNamespace) -> Bounds:
    other = _small(_plain(a.other))
    if kind_of(node).startswith("div"):
        if not bool(other.known.all()) or bool((other.low == 0).any()) or getattr(a, "rounding_mode", None):
            raise NotImplementedError("divided by what is not known")
        other = Bounds(1 / other.low, 1 / other.low)
    return times(_small(_plain(a.self)), other).spread(size_of(node))


def _small(x: Bounds) -> Bounds:
    return Bounds(small(x.low), small(x.high))


# ------------------------------------------------------------------ normalization
@rule("batch_norm")
def batch_norm(node: fx.Node, a: SimpleNamespace) -> Bounds:
    if a.training or a.running_var is None:
        return _affine(node, Bounds.any(size_of(node)), a.weight, a.bias, 1)
    scale = 1 / (_number(a.running_var) + a.eps).sqrt()
    scale = scale if a.weight is None else scale * _number(a.weight)
    shift = -_number(a.running_mean) * scale
    return _affine(node, a.input, scale, shift if a.bias is None else shift + _number(a.bias), 1)


@rule("group_norm", "instance_norm", "layer_norm", "rms_norm")
def norm(node: fx.Node, a: SimpleNamespace) -> Bounds:
    axis = 1 if kind_of(node) in ("group_norm", "instance_norm") else None
    return _affine(node, Bounds.any(size_of(node)), a.weight, getattr(a, "bias", None), axis)


def _affine(node: fx.Node, x: Bounds, scale: Any, shift: Any, axis: int | None) -> Bounds:
    """Times `scale`, plus `shift`, which lie along an axis; None: along the last axes, in their shape."""
    shape = size_of(node)
    result = _small(x)
    for value, step in ((scale, times), (shift, plus)):
        if value is not None:
            number = _number(value)
            number = number if axis is None else number.reshape(-1, *(1,) * (len(shape) - axis - 1))
            result = step(result, Bounds(number, number))
    return result.spread(shape)


def _number(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.double()
    if not bool(value.known.all()):
        raise NotImplementedError("a parameter is not known")
    return value.low


@rule("softmax", "_softmax")
def softmax(node: fx.Node, a: SimpleNamespace) -> Bounds:
    return Bounds.any(size_of(node), 0, 1)


# ------------------------------------------------------------------ contraction
@rule("linear")
def linear(node: fx.Node, a: SimpleNamespace) -> Bounds:
    size = a.input.low.shape[-1]
    rows = (end.expand(*end.shape[:-1], size) for end in (small(a.input.low), small(a.input.high)))
    found = product(Bounds(*rows), _number(a.weight))
    return _biased(found, a.bias, (-1,)).spread(size_of(node))


def _biased(x: Bounds, bias: Any, view: tuple[int, ...]) -> Bounds:
    if bias is None:
        return x
    number = _number(bias).reshape(view)
    return plus(x, Bounds(number, number))


@rule("conv1d", "conv2d", "conv3d")
def conv(node: fx.Node, a: SimpleNamespace) -> Bounds:
    weight, x = _number(a.weight), a.input
    n = weight.dim() - 2
    x = x.over(range(x.low.dim() - n, x.low.dim()))
    if pads(a.padding):
        x = x.with_zero()
    return _by_groups(
        node, a, x, weight.flatten(2).clamp(min=0).sum(2), weight.flatten(2).clamp(max=0).sum(2)
    )


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(node: fx.Node, a: SimpleNamespace) -> Bounds:
    """An element gets some of the taps: those that meet it."""
    weight, x = _number(a.weight), a.input
    n = weight.dim() - 2
    x = x.over(range(x.low.dim() - n, x.low.dim())).with_zero()
    taps = (
        weight.unflatten(0, (a.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(2)
    )  # (out, in of a group, taps)
    return _by_groups(node, a, x, taps.clamp(min=0).sum(2), taps.clamp(max=0).sum(2))


def _by_groups(node: fx.Node, a: SimpleNamespace, x: Bounds, up: Tensor, down: Tensor) -> Bounds:
    """Bounds of the sums of all groups; rising and falling weights of a tap pattern count apart.

    Args:
        node: the convolution.
        a: its arguments.
        x: input, of size 1 in space.
        up, down: (out, in of a group) sums of the positive and of the negative weights.
    """
    shape, groups = size_of(node), int(a.groups)
    channels = len(shape) - (a.weight.low if isinstance(a.weight, Bounds) else a.weight).dim() + 1
    count = up.shape[1] * groups
    parts = []
    for end in (x.low, x.high):
        rows = small(end).flatten(channels + 1)[..., 0]
        parts.append(rows.expand(*rows.shape[:-1], count).reshape(*rows.shape[:-1], groups, 1, -1))
    rows = Bounds(*parts)
    up, down = (w.reshape(groups, -1, w.shape[1]) for w in (up, down))
    rising, falling = product(rows, up), product(rows, down)
    total = plus(rising, falling)
    flat = Bounds(*(end.flatten(-3) for end in (total.low, total.high)))
    flat = _biased(flat, a.bias, (-1,))
    space = (1,) * (len(shape) - channels - 1)
    return Bounds(*(end.reshape(*end.shape, *space) for end in (flat.low, flat.high))).spread(shape)


def pads(padding: Any) -> bool:
    """Whether a convolution pads."""
    if isinstance(padding, str):
        return padding != "valid"
    return any(padding) if isinstance(padding, tuple | list) else bool(padding)


@rule("embedding")
def embedding(node: fx.Node, a: SimpleNamespace) -> Bounds:
    table = _number(a.weight)
    return Bounds(table.amin(0), table.amax(0)).spread(size_of(node))


@rule("matmul", "bmm")
def matmul(node: fx.Node, a: SimpleNamespace) -> Bounds:
    """Of two activations: zero where one of the operands is."""
    left, right = (value for value in vars(a).values() if isinstance(value, Bounds))
    rows, columns = left.over([left.low.dim() - 1]), right.over([right.low.dim() - 2])
    none = times(rows, Bounds.any(())), times(columns, Bounds.any(()))
    low = torch.where((none[0].low == 0) | (none[1].low == 0), 0.0, -INF)
    return Bounds(low, -low).spread(size_of(node))


@rule("scaled_dot_product_attention")
def attention(node: fx.Node, a: SimpleNamespace) -> Bounds:
    """Means of values over tokens; nothing where a mask leaves none."""
    found = a.value.over([a.value.low.dim() - 2])
    found = found if a.attn_mask is None else found.with_zero()
    shape = size_of(node)
    if a.enable_gqa and found.low.shape[-3] > 1:
        count = shape[-3] // found.low.shape[-3]
        found = Bounds(*(end.repeat_interleave(count, -3) for end in (found.low, found.high)))
    return found.spread(shape)


# ------------------------------------------------------------------ between elements
def mixed(node: fx.Node, a: SimpleNamespace) -> Bounds:
    """What lies between elements of the operand, along the axes that pooling and means run over."""
    x: Bounds = next(value for value in vars(a).values() if isinstance(value, Bounds))
    dims, shape, kind = x.low.dim(), size_of(node), kind_of(node)
    if kind.startswith(("mean", "amax", "amin")):
        axes = getattr(a, "dim", None)
        axes = range(dims) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        axes = sorted({int(axis) % dims for axis in axes})
        found = x.over(axes)
        if not getattr(a, "keepdim", False):
            ends = (end.squeeze(axes) for end in (found.low, found.high))
            found = Bounds(*ends)
        return found.spread(shape)
    lead = 2 if dims == len(shape) and dims > 2 else dims - 1
    found = x.over(range(lead, dims))
    if kind.startswith("avg_pool") and pads(concrete(a.padding)):
        found = found.with_zero()
    return found.spread(shape)
