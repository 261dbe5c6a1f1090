"""Layers whose weights can be fitted again: where their rows of inputs and outputs lie, and what else reaches the same sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from prunus.capture import Captured
from prunus.recovery.convolution import CONVS, TRANSPOSED, as_weight, matrix_of, windows_of
from prunus.surgery.recipe import bound_arguments

__all__ = ["Clip", "Layer", "Shortcut", "affine_of", "find_layers", "frozen_norm", "gain_of"]

aten = torch.ops.aten
_DROPOUTS = (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default, aten.alpha_dropout.default)  # fmt: skip
_ADDS = (aten.add.Tensor, aten.add_.Tensor)
_MULS = (aten.mul.Tensor, aten.mul_.Tensor)


@dataclass(frozen=True, eq=False)
class Shortcut:
    """What a layer's output is added to, and what happens to the output on the way.

    Attributes:
        other: the other operand of the sum.
        scales: batch normalizations and factors that the output passes through.
    """

    other: fx.Node
    scales: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class Clip:
    """An activation that is constant below `low` and above `high`, and how a layer's output gets there.

    Attributes:
        low, high: the identity lies between.
        norms: batch normalizations that the output passes through.
        other: what is added behind them; None where nothing is.
    """

    low: float
    high: float
    norms: tuple[fx.Node, ...]
    other: fx.Node | None


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer or convolution, transposed or not, of the small graph.

    Attributes:
        node: the call.
        source: what it reads.
        weight, bias: placeholders; no bias where the layer has none.
        norm: the batch normalization that alone reads its output, which can take a bias up.
        shortcut: where its output is added to something that is known before.
        groups: of a convolution; 1 otherwise.
        clip: where its output ends in a clipping activation that alone reads it.
    """

    node: fx.Node
    source: fx.Node
    weight: str
    bias: str | None
    norm: fx.Node | None
    shortcut: Shortcut | None
    groups: int
    arguments: dict[str, Any]
    clip: Clip | None

    @property
    def spatial(self) -> int:
        """Number of axes of the map; 0 for a linear layer."""
        return CONVS.get(self.node.target, 0)  # type: ignore[arg-type]

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution, whose weight has its inputs first."""
        return self.node.target in TRANSPOSED

    def matrix(self, weight: Tensor) -> Tensor:
        """(groups, out per group, in per group times kernel) of its weight."""
        return matrix_of(weight, self.groups, self.transposed)

    def as_weight(self, matrix: Tensor, weight: Tensor) -> Tensor:
        """What `matrix` laid out, in the shape of the weight again."""
        return as_weight(matrix, weight, self.transposed)

    def width(self, weight: Tensor) -> int:
        """Number of outputs."""
        return weight.shape[1] * self.groups if self.transposed else weight.shape[0]

    def bias_now(self) -> str | None:
        """Placeholder of the bias, also of one that the layer was given meanwhile."""
        bias = bound_arguments(self.node).get("bias")
        return bias.name if isinstance(bias, fx.Node) else None

    @property
    def norm_mean(self) -> str | None:
        """Placeholder of the running mean of `norm`."""
        mean = None if self.norm is None else self.norm.args[3]
        return mean.name if isinstance(mean, fx.Node) else None

    @property
    def channel_axis(self) -> int:
        return 1 if self.spatial else -1

    def outputs(self, y: Tensor, rows: Tensor) -> Tensor:
        """(rows, out) of an output, of which `rows` are indices into batch and map."""
        if not self.spatial:
            return y.reshape(-1, y.shape[-1])[rows]
        at = torch.unravel_index(rows, (y.shape[0], *y.shape[2:]))
        return y[(at[0], slice(None), *at[1:])]

    def inputs(self, x: Tensor, rows: Tensor, kernel: tuple[int, ...]) -> Tensor:
        """(rows, groups, in per group times kernel) that make the chosen rows of the output.

        Args:
            x: the input, with the batch.
            rows: (rows,) indices into `outputs`.
            kernel: sizes of the kernel.
        """
        if not self.spatial:
            return x.reshape(-1, x.shape[-1])[rows].unsqueeze(1)
        seen = windows_of(x, kernel, self.arguments, self.transposed)
        sizes = (seen.shape[0], *seen.shape[2 : 2 + self.spatial])
        at = torch.unravel_index(rows, sizes)
        picked = seen[(at[0], slice(None), *at[1:])]  # (rows, in, *kernel)
        return picked.reshape(len(rows), self.groups, -1)


def find_layers(small: Captured) -> dict[fx.Node, Layer]:
    """Calls of linear layers and convolutions whose weight nothing else uses, in the order of the graph."""
    dependent = small.input_dependent()
    found = {}
    for node in small.graph.nodes:
        if node not in dependent or node.target not in (aten.linear.default, *CONVS):
            continue
        arguments = bound_arguments(node)
        source, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
        if not _own(small, weight) or not (bias is None or _own(small, bias)) or source not in dependent:
            continue
        norm = _norm_behind(small, node)
        shortcut = _shortcut(small, node, dependent)
        groups = int(arguments.get("groups") or 1)
        name = None if bias is None else bias.name
        found[node] = Layer(
            node, source, weight.name, name, norm, shortcut, groups, arguments, _clip(small, node, shortcut)
        )
    return found


def _own(small: Captured, node: Any) -> bool:
    """A parameter that is used once, under one name."""
    return (
        isinstance(node, fx.Node)
        and small.kinds.get(node.name) == "parameter"
        and len(node.users) == 1
        and not small.aliases.get(small.names[node.name])
    )


def frozen_norm(small: Captured, node: fx.Node) -> bool:
    """A batch normalization by running statistics that no other one shares."""
    if node.target is not aten.batch_norm.default or node.args[5]:
        return False
    statistics = node.args[3:5]
    return all(isinstance(s, fx.Node) and s.name in small.tensors and len(s.users) == 1 for s in statistics)


def _norm_behind(small: Captured, node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and frozen_norm(small, users[0]) else None


def _shortcut(small: Captured, node: fx.Node, dependent: set[fx.Node]) -> Shortcut | None:
    order = {each: i for i, each in enumerate(small.graph.nodes)}
    scales: list[fx.Node] = []
    current = node
    while len(current.users) == 1:
        user = next(iter(current.users))
        if frozen_norm(small, user):
            scales.append(user)
        elif user.target in _MULS and _factor(small, user, current) is not None:
            scales.append(user)
        elif user.target in _ADDS and not user.kwargs:
            others = [n for n in user.all_input_nodes if n is not current]
            known = len(others) == 1 and others[0] in dependent and order[others[0]] < order[node]
            return Shortcut(others[0], tuple(scales)) if known and _same_shape(others[0], node) else None
        elif not (user.target in _DROPOUTS and user.args[2] is False):
            return None
        current = user
    return None


def _clip(small: Captured, node: fx.Node, shortcut: Shortcut | None) -> Clip | None:
    norms: list[fx.Node] = []
    current, other = node, None
    while len(current.users) == 1:
        user = next(iter(current.users))
        bounds = _bounds(user)
        if bounds is not None:
            return Clip(*bounds, tuple(norms), other)
        if other is None and frozen_norm(small, user):
            norms.append(user)
        elif other is None and user.target in _ADDS and shortcut and shortcut.other in user.all_input_nodes:
            other = shortcut.other
        elif not (user.target in _DROPOUTS and user.args[2] is False):
            return None
        current = user
    return None


def _bounds(node: fx.Node) -> tuple[float, float] | None:
    if node.target in (aten.relu.default, aten.relu_.default):
        return 0.0, float("inf")
    if node.target in (aten.relu6.default, aten.relu6_.default):
        return 0.0, 6.0
    if node.target in (aten.hardtanh.default, aten.hardtanh_.default):
        a = bound_arguments(node)
        return float(a["min_val"]), float(a["max_val"])
    return None


def _factor(small: Captured, node: fx.Node, current: fx.Node) -> fx.Node | None:
    others = [n for n in node.all_input_nodes if n is not current]
    return others[0] if len(others) == 1 and others[0].name in small.tensors else None


def _same_shape(one: fx.Node, other: fx.Node) -> bool:
    shapes = [getattr(n.meta.get("val"), "shape", None) for n in (one, other)]
    return shapes[0] is not None and len(shapes[0]) == len(shapes[1] or ())


def affine_of(norms: Sequence[fx.Node], tensors: Mapping[str, Tensor], size: int) -> tuple[Tensor, Tensor]:
    """(size,) gain and shift of frozen batch normalizations one after another."""
    gain, shift = torch.ones(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for node in norms:
        weight, bias, mean, variance = (
            tensors[each.name].detach().double().cpu() if isinstance(each, fx.Node) else None
            for each in node.args[1:5]
        )
        assert mean is not None and variance is not None
        a = (variance + float(node.args[7])).rsqrt() * (1.0 if weight is None else weight)  # type: ignore[arg-type]
        gain, shift = gain * a, (shift - mean) * a + (0.0 if bias is None else bias)
    return gain, shift


def gain_of(layer: Layer, tensors: dict[str, Tensor]) -> Tensor | None:
    """(out,) by which a layer's output is multiplied before it is added to its shortcut; None where that has another form."""
    assert layer.shortcut is not None
    size = layer.width(tensors[layer.weight])
    gain = torch.ones(size, dtype=torch.float64, device=tensors[layer.weight].device)
    for node in layer.shortcut.scales:
        if node.target is aten.batch_norm.default:
            weight, variance = node.args[1], node.args[4]
            assert isinstance(variance, fx.Node)
            factor = (tensors[variance.name].double() + float(node.args[7])).rsqrt()  # type: ignore[arg-type]
            if isinstance(weight, fx.Node):
                factor = factor * tensors[weight.name].detach().double()
        else:
            (other,) = [n for n in node.all_input_nodes if n.name in tensors]
            factor = tensors[other.name].detach().double()
            trailing = factor.shape[1:] if layer.spatial else ()
            if factor.numel() not in (1, size) or any(s != 1 for s in trailing):
                return None
            factor = factor.reshape(-1)
        gain = gain * factor
    return gain
