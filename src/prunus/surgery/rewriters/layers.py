"""Layers that are told their groups, their width or their scale."""

from __future__ import annotations

import math

from torch import fx

from prunus.surgery.rewrite import (
    Rewriting,
    argument,
    main_input,
    rewrites,
    set_argument,
)
from prunus.surgery.rewriters.sizes import resized


@rewrites(
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
    "_convolution",
    "torchvision::deform_conv2d",
)
def _conv(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    if argument(node, "groups") == 1:
        return
    x, weight = run.kept(main_input(node)), run.kept(node.args[1])  # type: ignore[arg-type]
    spatial = len(weight.shape) - 2
    channels = x.shape[len(x.shape) - spatial - 1]
    transposed = "transpose" in str(node.target)
    if transposed:
        old_per_group = x.before[len(x.before) - spatial - 1] // argument(node, "groups")
        line = x.line(len(x.shape) - spatial - 1)
        groups = argument(node, "groups")
        if line is not None:
            groups = int(line.view(groups, old_per_group).any(1).sum())
        set_argument(copy, "groups", groups)
        return
    set_argument(copy, "groups", channels // weight.shape[1])


@rewrites("group_norm")
def _group_norm(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    line = run.line(main_input(node), 1)
    groups = argument(node, "num_groups")
    if line is not None and groups > 1:
        set_argument(copy, "num_groups", int(line.view(groups, -1).any(1).sum()))


@rewrites("layer_norm", "rms_norm", "native_layer_norm")
def _layer_norm(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    out = run.kept(main_input(node))
    shape = list(argument(copy, "normalized_shape"))
    first = len(out.shape) - len(shape)
    sizes = [
        resized(run, copy, size, out.before[first + i], out.shape[first + i]) for i, size in enumerate(shape)
    ]
    set_argument(copy, "normalized_shape", sizes)


@rewrites("scaled_dot_product_attention")
def _attention(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    """The softmax keeps its temperature although the head dimension shrinks."""
    query = run.kept(main_input(node))
    if argument(node, "scale") is None and query.before[-1] != query.shape[-1]:
        set_argument(copy, "scale", 1 / math.sqrt(query.before[-1]))


@rewrites("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(run: Rewriting, node: fx.Node, copy: fx.Node) -> None:
    line = run.line(main_input(node), 1)
    groups = argument(node, "groups")
    if line is not None:
        set_argument(copy, "groups", int(line.view(groups, -1).any(1).sum()))
