"""Let a model return what is not made of tensors, such as a cache of keys and values."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["only_plain_outputs"]

_PLAIN = (Tensor, int, float, complex, bool, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


@contextlib.contextmanager
def only_plain_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Make the model return None in place of objects that torch cannot take apart.

    Such objects are dropped only from among tensors: an output that consists of one is left alone, and so is
    a data class, which may be where the results are.

    Yields:
        A list that each forward fills with what it left out, one entry for each object.
    """
    left_out: list[str] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        leaves, spec = pytree.tree_flatten(output)
        if spec.is_leaf() or not any(isinstance(leaf, Tensor) for leaf in leaves):
            return None
        left_out[:] = [_label(output, leaf) for leaf in leaves if _is_strange(leaf)]
        return pytree.tree_map(lambda leaf: None if _is_strange(leaf) else leaf, output) if left_out else None

    handle = model.register_forward_hook(hook)
    try:
        yield left_out
    finally:
        handle.remove()


def _is_strange(leaf: Any) -> bool:
    return not isinstance(leaf, _PLAIN) and not dataclasses.is_dataclass(leaf)


def _label(output: Any, leaf: Any) -> str:
    names = [str(name) for name, value in output.items() if value is leaf] if isinstance(output, dict) else []
    return f"{names[0]} ({type(leaf).__name__})" if names else type(leaf).__name__
