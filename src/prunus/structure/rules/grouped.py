"""Products of groups of rows with a matrix each: the experts of a mixture, to which a router sends tokens.

Which rows belong to which matrix depends on data, and so do the matrices that a row meets: both axes stay. What all
matrices have in common, their rows and columns, are channels like those of any other layer.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from prunus.structure.rules.contraction import add_bias, contract, produce
from prunus.structure.rules.registry import rule
from prunus.structure.value import Value

REASON = "belongs to a group that is chosen by data"


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_mm(run: Any, node: fx.Node, a: SimpleNamespace) -> Any:
    """Rows (T, K) with a stack (E, K, N) to (T, N), or one of the other ways in which offsets cut an axis."""
    x, w = list(vars(a).values())[:2]  # by position: libraries name them as they like
    stacked = len(x.shape) == 3, len(w.shape) == 3
    if stacked == (False, True):
        w = _chosen(run, node, w, 0)
        x = Value(x.shape, tuple(run.hold(node, x, {0}, REASON)))
        names = "tk", "kn", "tn"
    elif stacked == (True, False):
        x = _chosen(run, node, x, 0)
        w = Value(w.shape, tuple(run.hold(node, w, {1}, REASON)))
        names = "mk", "kt", "mt"
    elif stacked == (False, False):  # the axis that is summed over is cut
        x = Value(x.shape, tuple(run.hold(node, x, {1}, REASON)))
        w = Value(w.shape, tuple(run.hold(node, w, {0}, REASON)))
        names = "mk", "kn", "mn"
    else:
        names = "emk", "ekn", "emn"
    produce(run, x.tracks, len(x.shape) - 2)
    produce(run, w.tracks, len(w.shape) - 1)
    result = contract(run, node, x, names[0], w, names[1], names[2])
    shape = run.shape(node)
    value = Value(shape, tuple(track.expand(shape) for track in result.tracks))
    return add_bias(run, node, value, getattr(a, "bias", None))


def _chosen(run: Any, node: fx.Node, stack: Value, axis: int) -> Value:
    """Any one of a stack: nothing can be removed along the axis of the stack."""
    kept = run.hold(node, stack, {axis}, REASON)
    shape = (*stack.shape[:axis], *stack.shape[axis + 1 :])
    return Value(shape, tuple(track.select(axis, 0) for track in kept))
