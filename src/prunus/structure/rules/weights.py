"""Weights that are made of a direction and a gain.

The weight of output i is `v[i] * g[i] / |v[i]|`, with the norm over all other axes. Where an input leaves, surgery
changes the gain so that the weights of the inputs that stay keep their values; that needs a gain which is a parameter
of this weight alone.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.gains import has_own_gain
from prunus.structure.labels import varying
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    v, shape = a.v, a.v.shape
    if not has_own_gain(node, run.captured.tensors):
        over = set(range(len(shape))) - ({a.dim} if a.dim >= 0 else set())
        for track in v.tracks:  # they stay on the value: what meets them has the same reason
            if set(varying(track)) & over:
                run.labels.hold(track, "is part of a norm of weights whose gain has other uses", node.name)
    weight = Value(shape, tuple(run.meet(node, shape, v, a.g)))
    return (
        weight if not isinstance(node.meta["val"], (tuple, list)) else (weight, Value(a.g.shape, a.g.tracks))
    )
