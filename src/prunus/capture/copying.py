"""Copies of a user's model."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["copy_of"]

M = TypeVar("M", bound=nn.Module)


def copy_of(model: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy, also where modules keep what a forward computed, such as a weight that a hook makes of a mask and a parameter.

    Args:
        model: a module. It is left as found.
        memo: id of an object -> what the copy has in its place, as for `copy.deepcopy`.
    """
    memo = {} if memo is None else memo
    for module in model.modules():
        for value in pytree.tree_leaves(list(module.__dict__.values())):
            if (
                isinstance(value, Tensor) and not value.is_leaf
            ):  # torch refuses to copy those with their history
                memo.setdefault(id(value), value.detach().clone())
    return copy.deepcopy(model, memo)
