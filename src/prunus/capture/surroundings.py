"""What the user's own code runs in where it is compared with a graph that holds more, or other things, than one forward does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from prunus.capture.captured import Captured
from prunus.capture.packed import FullLengths
from prunus.capture.regions import JOIN

__all__ = ["surroundings"]


@contextmanager
def surroundings(captured: Captured) -> Iterator[None]:
    """Let the user's own code compute what the graph computes: all steps of packed sequences, both branches of a ``cond``."""
    with ExitStack() as stack:
        if captured.packed:
            stack.enter_context(FullLengths())
        if any(JOIN in node.meta for node in captured.graph.nodes):
            stack.enter_context(_both_branches())
        yield


@contextmanager
def _both_branches() -> Iterator[None]:
    """``torch.cond`` compiles its branches, and does not let anybody watch: instead, run both, and choose."""
    original = torch.cond
    torch.cond = _chosen
    try:
        yield
    finally:
        torch.cond = original


def _chosen(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ()) -> Any:
    yes, no = true_fn(*operands), false_fn(*operands)
    if not isinstance(pred, Tensor):
        return yes if pred else no
    scalar = pred.reshape([]) if pred.dim() else pred
    return pytree.tree_map(lambda a, b: torch.where(scalar, a, b), yes, no)
