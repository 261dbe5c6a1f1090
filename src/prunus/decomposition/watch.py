"""Find layers of which a model's own code reads more than their results, such as `self.fc.weight.dtype`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["attributes_read"]

_SEQUENTIAL = nn.Sequential()


@contextmanager
def attributes_read(model: nn.Module, paths: Iterable[str]) -> Iterator[dict[str, str]]:
    """Inside the block, note what is read of the named layers that a chain of layers in their place does not have.

    The layers get a class of their own meanwhile, derived from theirs, which looks at every access from outside the layer.

    Yields:
        Module path -> the attribute and the line of code that reads it; filled while the model runs.
    """
    read: dict[str, str] = {}
    layers = {path: model.get_submodule(path) for path in paths}
    classes = {path: type(layer) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            layer.__class__ = _watched(classes[path], path, read)
        yield read
    finally:
        for path, layer in layers.items():
            layer.__class__ = classes[path]


def _watched(own: type[nn.Module], path: str, read: dict[str, str]) -> type[nn.Module]:
    inside = 0

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        nonlocal inside
        inside += 1
        try:
            return own.__call__(self, *args, **kwargs)
        finally:
            inside -= 1

    def __getattribute__(self: Any, name: str) -> Any:  # noqa: N807
        if not inside and not name.startswith("_") and path not in read and not hasattr(_SEQUENTIAL, name):
            read[path] = _who_reads(name)
        return own.__getattribute__(self, name)

    def __getattr__(self: Any, name: str) -> Any:  # noqa: N807
        return own.__getattr__(self, name)

    methods = {"__call__": __call__, "__getattribute__": __getattribute__, "__getattr__": __getattr__}
    return type(own.__name__, (own,), methods)


def _who_reads(name: str) -> str:
    frame = sys._getframe(2)
    return f"{name} at {frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}"
