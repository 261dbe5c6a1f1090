"""Recipes for layers with weights: convolutions, linear layers, norms, embeddings."""

import inspect
from typing import Any

import torch
from torch import fx, nn

from prunus.surgery.recipe import Recipe, lifts, rank_of

__all__: list[str] = []

aten = torch.ops.aten

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV_TRANSPOSE = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _shape(node: Any) -> tuple[int, ...]:
    """Sizes of a weight; empty when the operand is absent or not known to be a tensor of fixed size."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    if not isinstance(value, torch.Tensor) or not all(isinstance(size, int) for size in value.shape):
        return ()
    return tuple(value.shape)


def _operands(**nodes: Any) -> dict[str, fx.Node]:
    return {name: node for name, node in nodes.items() if node is not None}


def _spread(value: Any, count: int) -> Any:
    """One number per spatial axis: operators take a single number or a list of one for all axes."""
    if isinstance(value, str | fx.Node):
        return value
    values = value if isinstance(value, tuple) else (value,)
    return values * count if len(values) == 1 else values


@lifts(
    aten.conv1d.default,
    aten.conv1d.padding,
    aten.conv2d.default,
    aten.conv2d.padding,
    aten.conv3d.default,
    aten.conv3d.padding,
    aten.convolution.default,
)
def _convolution(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    if a.get("transposed"):
        return _transposed(node, a)
    axes = len(shape) - 2
    if axes not in (1, 2, 3) or isinstance(a["groups"], fx.Node):
        return None
    settings = {
        "in_channels": shape[1] * a["groups"],
        "out_channels": shape[0],
        "kernel_size": shape[2:],
        "stride": _spread(a["stride"], axes),
        "padding": _spread(a["padding"], axes),
        "dilation": _spread(a["dilation"], axes),
        "groups": a["groups"],
        "bias": a["bias"] is not None,
    }
    return Recipe(_CONV[axes - 1], settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input"],))


@lifts(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def _transposed(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    axes = len(shape) - 2
    if axes not in (1, 2, 3) or isinstance(a["groups"], fx.Node):
        return None
    settings = {
        "in_channels": shape[0],
        "out_channels": shape[1] * a["groups"],
        "kernel_size": shape[2:],
        "stride": _spread(a["stride"], axes),
        "padding": _spread(a["padding"], axes),
        "output_padding": _spread(a["output_padding"], axes),
        "dilation": _spread(a["dilation"], axes),
        "groups": a["groups"],
        "bias": a["bias"] is not None,
    }
    return Recipe(
        _CONV_TRANSPOSE[axes - 1], settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input"],)
    )


@lifts(aten.linear.default)
def _linear(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    if len(shape) != 2:
        return None
    settings = {"in_features": shape[1], "out_features": shape[0], "bias": a["bias"] is not None}
    return Recipe(nn.Linear, settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input"],))


@lifts(aten.bilinear.default)
def _bilinear(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    if len(shape) != 3:
        return None
    settings = {
        "in1_features": shape[1],
        "in2_features": shape[2],
        "out_features": shape[0],
        "bias": a["bias"] is not None,
    }
    return Recipe(
        nn.Bilinear, settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input1"], a["input2"])
    )


@lifts(aten.embedding.default)
def _embedding(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    if len(shape) != 2:
        return None
    settings = {
        "num_embeddings": shape[0],
        "embedding_dim": shape[1],
        "padding_idx": None if a["padding_idx"] == -1 else a["padding_idx"],
        "scale_grad_by_freq": a["scale_grad_by_freq"],
        "sparse": a["sparse"],
    }
    return Recipe(nn.Embedding, settings, {"weight": a["weight"]}, (a["indices"],))


@lifts(aten.prelu.default)
def _prelu(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    shape = _shape(a["weight"])
    if len(shape) != 1:
        return None
    return Recipe(nn.PReLU, {"num_parameters": shape[0]}, {"weight": a["weight"]}, (a["self"],))


@lifts(aten.batch_norm.default)
def _batch_norm(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    cls = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}.get(
        rank_of(a["input"]) or 0
    )
    # with running statistics, training=True is a choice of the model's that eval() does not undo; without
    # them the module normalises by the batch in either mode, and training=False is not possible
    if a["training"] is not (a["running_mean"] is None):
        return None
    return _tracked_norm(cls, a)


@lifts(aten.instance_norm.default)
def _instance_norm(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    cls = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}.get(rank_of(a["input"]) or 0)
    if a["use_input_stats"] is not (a["running_mean"] is None):
        return None
    return _tracked_norm(cls, a)


def _tracked_norm(cls: type[nn.Module] | None, a: dict[str, Any]) -> Recipe | None:
    tracked = [a[name] is not None for name in ("running_mean", "running_var")]
    channels = _channels(a, "weight", "running_mean")
    affine = _affine(cls, a) if cls is not None else None
    if cls is None or channels is None or affine is None or tracked[0] != tracked[1]:
        return None
    settings = {
        "num_features": channels,
        "eps": a["eps"],
        "momentum": a["momentum"],
        **affine,
        "track_running_stats": tracked[0],
    }
    weights = _operands(**{name: a[name] for name in ("weight", "bias", "running_mean", "running_var")})
    return Recipe(cls, settings, weights, (a["input"],))


def _affine(cls: type[nn.Module], a: dict[str, Any]) -> dict[str, bool] | None:
    """Constructor arguments for the weight and bias of a norm; None when it cannot have just those."""
    if (a["weight"] is None) == (a["bias"] is None):
        return {"affine": a["weight"] is not None}
    if a["bias"] is None and "bias" in inspect.signature(cls).parameters:  # newer versions of torch
        return {"affine": True, "bias": False}
    return None


def _channels(a: dict[str, Any], *weights: str) -> int | None:
    """Size of axis 1 of the input; from a weight where there is one."""
    for shape in (_shape(a[name]) for name in weights):
        if shape:
            return shape[0]
    example = a["input"].meta.get("val")
    if not isinstance(example, torch.Tensor) or example.dim() < 2 or not isinstance(example.shape[1], int):
        return None
    return example.shape[1]


@lifts(aten.group_norm.default)
def _group_norm(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    channels, affine = _channels(a, "weight"), _affine(nn.GroupNorm, a)
    if channels is None or affine is None:
        return None
    settings = {
        "num_groups": a["num_groups"],
        "num_channels": channels,
        "eps": a["eps"],
        **affine,
    }
    return Recipe(nn.GroupNorm, settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input"],))


@lifts(aten.layer_norm.default)
def _layer_norm(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    if a["weight"] is None and a["bias"] is not None:
        return None
    settings = {
        "normalized_shape": a["normalized_shape"],
        "eps": a["eps"],
        "elementwise_affine": a["weight"] is not None,
        "bias": a["bias"] is not None,
    }
    return Recipe(nn.LayerNorm, settings, _operands(weight=a["weight"], bias=a["bias"]), (a["input"],))


@lifts(aten.rms_norm.default)
def _rms_norm(node: fx.Node, a: dict[str, Any]) -> Recipe | None:
    settings = {
        "normalized_shape": a["normalized_shape"],
        "eps": a["eps"],
        "elementwise_affine": a["weight"] is not None,
    }
    return Recipe(nn.RMSNorm, settings, _operands(weight=a["weight"]), (a["input"],))
