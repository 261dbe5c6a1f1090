"""Normalizations: channels pass and go with the parameters that scale them.

Statistics taken over a removable axis change when something leaves (layer, group, RMS norm); verification computes them
over what is kept.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.layout import in_rows
from prunus.structure.rules.elementwise import on_axis
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule("batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm", "native_batch_norm")
def batch_norm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = a.input.shape
    parts = [on_axis(v, 1, shape) for v in (a.weight, a.bias, a.running_mean, a.running_var)]
    result = Value(shape, tuple(run.meet(node, shape, a.input, *[p for p in parts if p.tracks])))
    return result if not isinstance(node.meta["val"], (tuple, list)) else (result, *run.solid(node)[1:])


@rule("instance_norm")
def instance_norm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    return batch_norm(run, node, a)


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    shape = a.input.shape
    parts = [p for p in (a.weight, getattr(a, "bias", None)) if p is not None]
    result = Value(shape, tuple(run.meet(node, shape, a.input, *parts)))
    return result if not isinstance(node.meta["val"], (tuple, list)) else (result, *run.solid(node)[1:])


@rule("group_norm")
def group_norm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Every group must lose equally many channels, or go as a whole."""
    shape = a.input.shape
    groups = a.num_groups
    parts = [on_axis(v, 1, shape) for v in (a.weight, a.bias)]
    tracks = run.meet(node, shape, a.input, *[p for p in parts if p.tracks])
    if 1 < groups < shape[1]:
        rows = (shape[0], groups, shape[1] // groups, *shape[2:])
        for track in tracks:
            in_rows(run.labels, track, rows, node.name)
    return Value(shape, tuple(tracks))
