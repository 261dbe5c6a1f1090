"""Fused attention: scores, mask, softmax and values in one operator."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.labels import tighten
from prunus.structure.layout import in_rows
from prunus.structure.rules.contraction import contract
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value


@rule("scaled_dot_product_attention")
def attention(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Q (..., H, L, E), k (..., H', S, E), v (..., H', S, V); with grouped-query heads H is a multiple of H'."""
    q, k, v = a.query, a.key, a.value
    if a.enable_gqa and q.shape[-3] != k.shape[-3]:
        return _grouped_query(run, node, a)
    lead = "ABCDEF"[: len(q.shape) - 2]
    scores = contract(run, node, q, lead + "le", k, lead + "se", lead + "ls")
    if a.attn_mask is not None:
        scores = Value(scores.shape, tuple(run.meet(node, scores.shape, scores, a.attn_mask)))
    return contract(run, node, scores, lead + "ls", v, lead + "sv", lead + "lv")


def _grouped_query(run: Any, node: fx.Node, a: SimpleNamespace) -> Value:
    q, k, v = a.query, a.key, a.value
    heads = k.shape[-3]
    group = q.shape[-3] // heads
    lead = "ABCD"[: len(q.shape) - 3]
    wide = (*q.shape[:-3], heads, group, *q.shape[-2:])
    tracks = [in_rows(run.labels, track, wide, node.name) for track in q.tracks]
    scores = contract(run, node, Value(wide, tuple(tracks)), lead + "hgle", k, lead + "hse", lead + "hgls")
    if a.attn_mask is not None:
        mask = a.attn_mask
        if len(mask.shape) >= 3 and mask.shape[-3] == q.shape[-3]:
            shape = (*mask.shape[:-3], heads, group, *mask.shape[-2:])
            mask = Value(shape, tuple(t.reshape(shape) for t in mask.tracks))
        elif len(mask.shape) >= 3:
            shape = (*mask.shape[:-2], 1, *mask.shape[-2:])
            mask = Value(shape, tuple(t.reshape(shape) for t in mask.tracks))
        scores = Value(scores.shape, tuple(run.meet(node, scores.shape, scores, mask)))
    out = contract(run, node, scores, lead + "hgls", v, lead + "hsv", lead + "hglv")
    flat = run.shape(node)
    return Value(flat, tuple(tighten(t.reshape(flat)) for t in out.tracks))
