"""Let a model return what is not made of tensors, such as a cache of keys and values."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from prunus.errors import CaptureError

__all__ = ["only_plain_outputs"]

_PLAIN = (Tensor, int, float, complex, bool, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool)


@contextlib.contextmanager
def only_plain_outputs(model: nn.Module) -> Iterator[list[str]]:
    """Make the model return None in place of objects that torch cannot take apart.

    Such objects are dropped only from among tensors. A data class, or an object without a tensor beside it,
    is taken for the result itself.

    Yields:
        A list that each forward fills with what it left out, one entry for each object.

    Raises:
        CaptureError: From within the forward, when the result itself cannot be taken apart.
    """
    left_out: list[str] = []

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        leaves = pytree.tree_leaves(output)
        strange = [leaf for leaf in leaves if not isinstance(leaf, _PLAIN)]
        left_out[:] = [_label(output, leaf) for leaf in strange]
        if not strange:
            return None
        results = [leaf for leaf in strange if dataclasses.is_dataclass(leaf)]
        if results or not any(isinstance(leaf, Tensor) for leaf in leaves):
            raise CaptureError(_unknown(type((results or strange)[0])))
        return pytree.tree_map(lambda leaf: leaf if isinstance(leaf, _PLAIN) else None, output)

    handle = model.register_forward_hook(hook)
    try:
        yield left_out
    finally:
        handle.remove()


def _unknown(kind: type) -> str:
    way = (
        "export.register_dataclass"
        if dataclasses.is_dataclass(kind)
        else "utils._pytree.register_pytree_node"
    )
    return (
        f"The model's forward returns a {kind.__module__}.{kind.__qualname__}, which torch cannot take "
        f"apart. Register the class once, with torch.{way}, or return tuples and dictionaries of tensors."
    )


def _label(output: Any, leaf: Any) -> str:
    names = [str(name) for name, value in output.items() if value is leaf] if isinstance(output, dict) else []
    return f"{names[0]} ({type(leaf).__name__})" if names else type(leaf).__name__
