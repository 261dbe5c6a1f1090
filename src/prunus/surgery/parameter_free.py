"""Recipes for modules without parameters: dropout, activations, pooling."""

from typing import Any

import torch
from torch import fx, nn

from prunus.surgery.recipe import Builder, Recipe, lifts, rank_of

__all__: list[str] = []

aten = torch.ops.aten

# operator -> class, arguments of the operator that are arguments of the constructor under the same name
_ACTIVATIONS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "relu": (nn.ReLU, ()),
    "relu6": (nn.ReLU6, ()),
    "silu": (nn.SiLU, ()),
    "mish": (nn.Mish, ()),
    "selu": (nn.SELU, ()),
    "hardswish": (nn.Hardswish, ()),
    "hardsigmoid": (nn.Hardsigmoid, ()),
    "celu": (nn.CELU, ("alpha",)),
    "leaky_relu": (nn.LeakyReLU, ("negative_slope",)),
    "threshold": (nn.Threshold, ("threshold", "value")),
}
_ACTIVATIONS_NEVER_IN_PLACE: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "gelu": (nn.GELU, ("approximate",)),
    "sigmoid": (nn.Sigmoid, ()),
    "tanh": (nn.Tanh, ()),
    "softplus": (nn.Softplus, ("beta", "threshold")),
    "log_sigmoid": (nn.LogSigmoid, ()),
    "hardshrink": (nn.Hardshrink, ("lambd",)),
    "softshrink": (nn.Softshrink, ("lambd",)),
    "glu": (nn.GLU, ("dim",)),
}


def _activation(cls: type[nn.Module], names: tuple[str, ...], in_place: bool | None) -> Builder:
    def build(node: fx.Node, a: dict[str, Any]) -> Recipe:
        settings = {name: a[name] for name in names}
        if in_place is not None:
            settings["inplace"] = in_place
        return Recipe(cls, settings, inputs=(a["self"],))

    return build


for _name, (_cls, _arguments) in _ACTIVATIONS.items():
    lifts(getattr(aten, _name).default)(_activation(_cls, _arguments, False))
    lifts(getattr(aten, f"{_name}_").default)(_activation(_cls, _arguments, True))
for _name, (_cls, _arguments) in _ACTIVATIONS_NEVER_IN_PLACE.items():
    lifts(getattr(aten, _name).default)(_activation(_cls, _arguments, None))


@lifts(aten.elu.default, aten.elu_.default)
def _elu(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    if a["scale"] != 1 or a["input_scale"] != 1:
        return None
    return Recipe(nn.ELU, {"alpha": a["alpha"], "inplace": _is_in_place(node)}, inputs=(a["self"],))


@lifts(aten.hardtanh.default, aten.hardtanh_.default)
def _hardtanh(node: fx.Node, a: dict[str, Any]) -> Recipe:
    if (a["min_val"], a["max_val"]) == (0, 6):
        return Recipe(nn.ReLU6, {"inplace": _is_in_place(node)}, inputs=(a["self"],))
    settings = {"min_val": a["min_val"], "max_val": a["max_val"], "inplace": _is_in_place(node)}
    return Recipe(nn.Hardtanh, settings, inputs=(a["self"],))


@lifts(aten.softmax.int, aten.log_softmax.int)
def _softmax(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    if a["dtype"] is not None:
        return None
    cls = nn.Softmax if node.target is aten.softmax.int else nn.LogSoftmax
    return Recipe(cls, {"dim": a["dim"]}, inputs=(a["self"],))


@lifts(aten.rrelu.default, aten.rrelu_.default)
def _rrelu(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    if a["training"] is not False or a["generator"] is not None:
        return None
    settings = {"lower": a["lower"], "upper": a["upper"], "inplace": _is_in_place(node)}
    return Recipe(nn.RReLU, settings, inputs=(a["self"],), always=True)


_FEATURE_DROPOUT = {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d}


@lifts(
    *(
        operator
        for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
        for operator in (getattr(aten, name).default, getattr(aten, f"{name}_").default)
    )
)
def _dropout(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    if a["train"] is not False:
        return None  # active in evaluation too, as for Monte Carlo dropout
    value = a["self"] if "self" in a else a["input"]
    name = _name_of(node).rstrip("_")
    if name == "feature_dropout":
        cls = _FEATURE_DROPOUT.get(rank_of(value) or 0)
    else:
        cls = {"dropout": nn.Dropout, "alpha_dropout": nn.AlphaDropout}.get(name, nn.FeatureAlphaDropout)
    if cls is None:
        return None
    return Recipe(cls, {"p": a["p"], "inplace": _is_in_place(node)}, inputs=(value,), always=True)


_POOLS: tuple[tuple[torch._ops.OpOverload, type[nn.Module]], ...] = (
    (aten.max_pool1d.default, nn.MaxPool1d),
    (aten.max_pool2d.default, nn.MaxPool2d),
    (aten.max_pool3d.default, nn.MaxPool3d),
    (aten.avg_pool1d.default, nn.AvgPool1d),
    (aten.avg_pool2d.default, nn.AvgPool2d),
    (aten.avg_pool3d.default, nn.AvgPool3d),
    (aten.adaptive_avg_pool1d.default, nn.AdaptiveAvgPool1d),
    (aten.adaptive_avg_pool2d.default, nn.AdaptiveAvgPool2d),
    (aten.adaptive_avg_pool3d.default, nn.AdaptiveAvgPool3d),
)


def _pool(cls: type[nn.Module]) -> Builder:
    def build(node: fx.Node, a: dict[str, Any]) -> Recipe:
        # an empty stride means the kernel size; the operators take (k,) for every axis, the modules take the
        # number
        if "output_size" in a:
            a = {**a, "output_size": _own_sizes_left(a["output_size"], a["self"])}
        settings = {
            name: value[0] if isinstance(value, tuple) and len(value) == 1 else value
            for name, value in a.items()
            if name != "self" and value != ()
        }
        return Recipe(cls, settings, inputs=(a["self"],))

    return build


def _own_sizes_left(sizes: tuple[Any, ...], source: fx.Node) -> tuple[Any, ...]:
    """Sizes of an adaptive pooling; None where it is the free size of the input itself, as in the module."""
    own = source.meta["val"].shape[-len(sizes) :]
    return tuple(
        None if isinstance(size, fx.Node) and _same_size(size.meta.get("val"), free) else size
        for size, free in zip(sizes, own, strict=True)
    )


def _same_size(one: Any, other: Any) -> bool:
    symbolic = isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt)
    return symbolic and one.node.expr == other.node.expr


for _operator, _cls in _POOLS:
    lifts(_operator)(_pool(_cls))


def _name_of(node: fx.Node) -> str:
    assert isinstance(node.target, torch._ops.OpOverload)
    return node.target._schema.name.partition("::")[2]


def _is_in_place(node: fx.Node) -> bool:
    return _name_of(node).endswith("_")
