"""Which layers of a model can be replaced: those whose weight is nothing but the weight of their own call."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunus.capture import Captured, size_of
from prunus.decomposition.geometry import CONVS, LAYERS, TRANSPOSED, Geometry, geometry_of
from prunus.surgery.count import macs_of

__all__ = ["Site", "find_sites"]

aten = torch.ops.aten
_LINEAR = {aten.linear.default}
_CONV = {getattr(getattr(aten, f"conv{n}d"), form) for n in (1, 2, 3) for form in ("default", "padding")}
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
_OPERATORS = {"linear": _LINEAR, "conv": _CONV, "transposed": _TRANSPOSED}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class Site:
    """A layer that can be replaced.

    Attributes:
        path: of the module.
        layer: the user's own module.
        geometry: how it applies its kernel.
        calls: (rows, spatial size of the input) of each call in one pass: rows are the samples, or the vectors of a linear layer.
        batch: samples of the captured pass.
    """

    path: str
    layer: Any
    geometry: Geometry
    calls: tuple[tuple[int, tuple[int, ...]], ...]
    batch: int

    @property
    def params(self) -> int:
        return int(self.geometry.weights) + (0 if self.layer.bias is None else self.geometry.outputs)

    def macs(self, chain: list[Geometry]) -> Any:
        """Multiply-accumulates of a chain in place of this layer, for one sample."""
        total: Any = 0
        for rows, size in self.calls:
            for geometry in chain:
                macs, size = geometry.macs(size) if _there(geometry) else (geometry.weights, size)
                total = total + rows * macs
        return total / self.batch


def _there(geometry: Geometry) -> bool:
    return not isinstance(geometry.inputs, int) or geometry.inputs > 0


def find_sites(captured: Captured) -> tuple[dict[str, Site], dict[str, str]]:
    """Layers that can be replaced, and why others of the kinds in question cannot: both by module path."""
    sites: dict[str, Site] = {}
    reasons: dict[str, str] = {}
    if captured.model is None:
        return sites, reasons
    placeholders = {captured.names[n.name]: n for n in captured.graph.nodes if n.name in captured.names}
    for path, layer in captured.model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        reason = _own(layer) or _shared(captured, path)
        weight = placeholders.get(_name(path, "weight"))
        calls = [node for node in weight.users] if weight is not None else []
        if reason is None:
            reason = _calls_problem(captured, path, layer, weight, calls)
        if reason is None:
            geometry = geometry_of(layer)
            sites[path] = Site(path, layer, geometry, tuple(_call(c, geometry) for c in calls), captured.batch or 1)  # fmt: skip
        else:
            reasons[path] = reason
    return sites, reasons


def _name(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _own(layer: nn.Module) -> str | None:
    """What about the module itself keeps it from being replaced."""
    kind: Any = nn.Linear if isinstance(layer, nn.Linear) else None
    for n in (1, 2, 3):
        kind = CONVS[n] if isinstance(layer, CONVS[n]) else kind
        kind = TRANSPOSED[n] if isinstance(layer, TRANSPOSED[n]) else kind
    own = type(layer)
    changed = own.forward is not kind.forward
    if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd):
        changed = changed or getattr(own, "_conv_forward", None) is not kind._conv_forward
    if changed:
        return f"is a {own.__name__}, which computes something of its own"
    if "weight" not in layer._parameters:
        return "has a weight that is computed from other parameters"
    if any(getattr(layer, name, None) for name in _HOOKS):
        return "has hooks"
    extra = sorted({*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"})
    if extra:
        return f"has more than a weight and a bias: {', '.join(extra)}"
    weight: Any = layer.weight
    if not weight.is_floating_point() or weight.dtype.itemsize < 2:
        return f"has a weight of {str(weight.dtype).removeprefix('torch.')}"
    return None


def _shared(captured: Captured, path: str) -> str | None:
    for name in ("weight", "bias"):
        own = _name(path, name)
        for first, others in captured.aliases.items():
            if own == first or own in others:
                return f"shares its {name} with {next(n for n in (first, *others) if n != own)}"
    return None


def _calls_problem(
    captured: Captured, path: str, layer: Any, weight: fx.Node | None, calls: list[fx.Node]
) -> str | None:
    """What in the graph shows that the weight is used otherwise than by calling the layer."""
    if weight is None or not calls:
        return "is not used by the forward"
    geometry = geometry_of(layer)
    for call in calls:
        operands = [operand for operand in call.all_input_nodes if operand is weight]
        if call.target not in _OPERATORS[geometry.kind] or len(operands) != 1 or call.args[1] is not weight:
            return f"has a weight that {call.name} ({_operator(call)}) uses in another way"
        if not _made_by(call, path):
            return f"has a weight that {call.name} uses without calling the layer"
        if geometry.kind == "transposed" and not _same_transposed(call, geometry):
            return "is called with an output size"
    bias = next((n for n in captured.graph.nodes if captured.names.get(n.name) == _name(path, "bias")), None)
    if bias is not None and any(user not in calls for user in bias.users):
        return "has a bias that is also used elsewhere"
    return None


def _made_by(call: fx.Node, path: str) -> bool:
    stack = call.meta.get("nn_module_stack") or {}
    last = list(stack.values())[-1][0] if stack else ""
    return last.partition("@")[0] == path


def _same_transposed(call: fx.Node, geometry: Geometry) -> bool:
    given = tuple(call.args[5]) if len(call.args) > 5 else (0,) * len(geometry.kernel)  # type: ignore[arg-type]
    return given in (geometry.output_padding, geometry.output_padding[:1] * len(geometry.kernel))


def _operator(call: fx.Node) -> str:
    return str(call.target).removeprefix("aten.").split(".")[0]


def _call(call: fx.Node, geometry: Geometry) -> tuple[int, tuple[int, ...]]:
    """Rows and spatial size of what a call gets, so that its work comes out as counted in the graph."""
    size = size_of(call.args[0])  # type: ignore[arg-type]
    if geometry.kind == "linear":
        return math.prod(size[:-1]), ()
    axes = len(geometry.kernel)
    # explicit padding of other modes is an operator of its own before the call: its result is what comes in
    if geometry.padding_mode != "zeros":
        pads = geometry.before()
        size = (*size[:-axes], *(n - sum(pad) for n, pad in zip(size[-axes:], pads, strict=True)))
    rows = math.prod(size[: -1 - axes])
    macs, _ = geometry.macs(size[-axes:])
    counted = macs_of(call)
    assert rows * macs == counted, f"{call.name}: {rows * macs} {counted}"
    return rows, tuple(size[-axes:])
